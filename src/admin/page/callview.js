// Shows one call, as /calls/<request id> describes it.

import { make, makeSvg, seconds } from './common.js';

// The nodes that show a call, without a title.
export function callNodes(call) {
  const facts = [
    ['Request id', call.request_id],
    ['CAMS\'s request id', call.cams_request_id],
    ['Ended', `${seconds(call.age_seconds)} ago`],
    ['Account, action', `${call.account} / ${call.action}`],
    ['Client', call.client],
    ['Tenant', call.tenant],
    ['Flow', call.flow_name],
    ['Limit', call.limit_per_second === null ? 'none' : `${Number(call.limit_per_second.toPrecision(3))} per second`],
    ['Hold', call.hold_ms === null ? '' : `${seconds(call.hold_ms / 1000)}, sent until ${seconds(call.send_by_ms / 1000)}`],
  ];
  const fact = ([name, text]) => make('div', {}, make('dt', { text: name }), make('dd', { text }));
  const row = ({ at_ms: when, text }) => make('tr', { role: 'row' }, make('td', { role: 'cell', classes: 'number', text: `${(when / 1000).toFixed(3)} s` }), make('td', { role: 'cell', text }));
  const head = (text, classes = '') => make('th', { scope: 'col', role: 'columnheader', text, classes });
  return [
    make('p', { classes: `summary ${call.outcome}`, text: call.summary }),
    way(call),
    make('h3', { text: 'Why it waited' }),
    call.why.length ? make('ul', {}, ...call.why.map((text) => make('li', { text }))) : make('p', { classes: 'note', text: 'There is nothing to explain.' }),
    make('h3', { text: 'Its way' }),
    make('table', { role: 'table', classes: 'steps', 'aria-label': 'Steps of the call' },
      make('thead', { role: 'rowgroup' }, make('tr', { role: 'row' }, head('After', 'number'), head('What'))), make('tbody', { role: 'rowgroup' }, ...call.steps.map(row))),
    make('h3', { text: 'Facts' }),
    make('dl', {}, ...facts.filter(([, text]) => text).map(fact)),
  ];
}

// A bar from arrival to end: waits, attempts and back-offs.
function way({ tries, took_ms: took }) {
  const all = Math.max(took, 1);
  const parts = [];
  let from = 0;
  // An attempt is visible even if it is short, and is drawn over the waits.
  const part = (name, until, least = 0) => {
    const width = Math.max((1000 * (until - from)) / all, least);
    const x = Math.min((1000 * from) / all, 1000 - least);
    if (width > 0) parts.push({ name, rect: makeSvg('rect', { class: name, x, y: 0, width, height: 10 }) });
    from = Math.max(from, until);
  };
  for (const { permitted_ms: permitted, ended_ms: ended, back_off_ms: backOff } of tries) {
    part('wait', permitted);
    part('attempt', ended, 5);
    if (backOff) part('back-off', ended + backOff);
  }
  part('wait', took);
  const names = [['wait', 'waits'], ['attempt', 'attempt at CAMS'], ['back-off', 'back-off']].filter(([name]) => parts.some((one) => one.name === name));
  const legend = names.map(([name, text]) => make('span', { classes: `key ${name}`, text }));
  const drawn = [...parts.filter(({ name }) => name !== 'attempt'), ...parts.filter(({ name }) => name === 'attempt')].map(({ rect }) => rect);
  return make('div', { classes: 'way', 'aria-hidden': 'true' }, makeSvg('svg', { viewBox: '0 0 1000 10', preserveAspectRatio: 'none' }, ...drawn), make('p', { classes: 'note' }, ...legend));
}
