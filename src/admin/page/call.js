// The page of one call.

import { callNodes } from './callview.js';
import { askForToken, at, make, put, request, session } from './common.js';

async function load() {
  const id = location.pathname.split('/').pop();
  put(at('call-title'), `Call ${decodeURIComponent(id)}`);
  for (;;) {
    const answer = await request(`calls/${id}`);
    if (answer.ok) {
      at('call').replaceChildren(...callNodes(await answer.json()));
      return;
    }
    if (answer.status !== 401) throw new Error((await answer.text()).trim());
    await askForToken(session.token === null ? '' : 'Wrong token.');
  }
}

load().catch((error) => at('call').replaceChildren(make('p', { role: 'alert', text: error.message })));
