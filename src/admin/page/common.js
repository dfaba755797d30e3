// What both pages share: small helpers, and requests with the token.
// Names come from callers, so they are only ever set as textContent.

// The folder of the pages: a page of a call is one level below it.
export const ROOT = new URL('.', import.meta.url);
export const DAY = 86400;
const ANSWER_MS = 10_000;

// The token, if one is required, is held in this object and nowhere else.
export const session = { token: null };

export const at = (id) => document.getElementById(id);
export const laneName = ({ account, action }) => `${account} / ${action}`;
export const sum = (list) => list.reduce((all, one) => all + one, 0);

export function make(name, { text, classes, ...attributes } = {}, ...children) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (classes) node.className = classes;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function makeSvg(name, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function seconds(value) {
  if (value === null || value === undefined) return '';
  if (value < 0.0005) return '0 s';
  if (value < 10) return `${value.toFixed(value < 1 ? 2 : 1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 2 * 3600) return `${Math.round(value / 60)} min`;
  return value < 2 * DAY ? `${Math.round(value / 3600)} h` : `${Math.round(value / DAY)} days`;
}

export const rate = (value) => String(Number(value.toPrecision(3)));

// A request below the root. Accepts JSON, so that the path of a call does not return its page. Ends after a while, because
// Flowgate may hang, unless the options have a signal.
export function request(path, options = {}) {
  const authorization = session.token === null ? {} : { authorization: `Bearer ${session.token}` };
  return fetch(new URL(path, ROOT), { cache: 'no-store', signal: AbortSignal.timeout(ANSWER_MS), ...options, headers: { accept: 'application/json, */*', ...authorization, ...options.headers } });
}

// Shows the form for the token. Resolves when it is entered.
export function askForToken(why) {
  put(at('gate-error'), why);
  at('gate').hidden = false;
  at('gate-token').focus();
  return new Promise((resolve) => {
    at('gate').onsubmit = (event) => {
      event.preventDefault();
      session.token = at('gate-token').value;
      at('gate-token').value = '';
      at('gate').hidden = true;
      resolve();
    };
  });
}
