// Shows the snapshots of /events, the last 15 minutes of /history and the calls of /calls, and sends operator actions.
// Names come from callers, so they are only ever set as textContent.

import { callNodes } from './callview.js';
import { drawChart, minuteRows, newChart } from './charts.js';
import { DAY, askForToken, at, laneName, make, makeSvg, put, rate, request, seconds, session, sum } from './common.js';

let pending = null;

const RUNBOOK = 'https://github.com/flowgate/flowgate/blob/main/docs/runbook.md#';
// Points of a sparkline, one per second. Each is the mean of the last few seconds, because tokens come back in bunches.
const POINTS = 60;
const MEAN = 5;
// Flowgate forgets an idle lane immediately; this page keeps it for this long.
const REMEMBERED_MS = 60_000;
// An event comes each second. Without data for this long Flowgate hangs, or the network to it is down.
const SILENCE_SECONDS = 5;
const RETRY_MS = 2000;

// Accounts that an entry of the attention list names.
const NAMED = 5;

const lanes = new Map();
const unknowns = new Map();

// === Small things ===

function bytes(value) {
  return value < 1024 ? `${value} B` : value < 1 << 20 ? `${(value / 1024).toFixed(1)} KiB` : `${(value / (1 << 20)).toFixed(1)} MiB`;
}

function cell(column, classes = '') {
  return make('td', { role: 'cell', classes, 'data-name': column });
}

// === Lanes ===

function newLane({ account, action }) {
  const lane = { account, action, points: [], samples: [], isOpen: false };
  lane.more = make('button', { type: 'button', classes: 'more', 'aria-expanded': 'false', text: laneName(lane) });
  lane.name = make('td', { role: 'cell', classes: 'whole' }, lane.more);
  lane.queued = cell('Queued', 'number');
  lane.oldest = cell('Oldest wait', 'number');
  lane.predicted = cell('Wait for a new call', 'number');
  lane.granted = cell('Granted per second');
  lane.rate = cell('Rate / limit', 'number');
  lane.pause = cell('Pause');
  lane.orders = cell('Operator actions', 'orders');
  lane.spark = sparkline();
  lane.grantedText = make('span');
  lane.granted.append(make('span', {}, lane.spark.svg, lane.grantedText));
  lane.pauseButton = make('button', { type: 'button', text: 'Pause' });
  lane.flushButton = make('button', { type: 'button', text: 'Flush' });
  lane.orders.append(make('span', {}, lane.pauseButton, lane.flushButton));
  lane.row = make('tr', { role: 'row' }, lane.name, lane.queued, lane.oldest, lane.predicted, lane.granted, lane.rate, lane.pause, lane.orders);
  lane.tenants = make('tr', { role: 'row', classes: 'tenants', hidden: '' });
  lane.more.addEventListener('click', () => {
    lane.isOpen = !lane.isOpen;
    lane.more.setAttribute('aria-expanded', String(lane.isOpen));
    lane.tenants.hidden = !lane.isOpen;
  });
  lane.pauseButton.addEventListener('click', () => ask(lane.isPaused ? 'resume' : 'pause', lane));
  lane.flushButton.addEventListener('click', () => ask('flush', lane));
  return lane;
}

function sparkline() {
  const line = makeSvg('polyline', { points: '' });
  const limit = makeSvg('line', { x1: 0, x2: POINTS - 1 });
  const svg = makeSvg('svg', { class: 'spark', viewBox: `0 0 ${POINTS - 1} 20`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }, limit, line);
  return { svg, line, limit };
}

function drawSpark({ points, spark }, limit) {
  const top = Math.max(limit * 1.25, ...points, 1e-9);
  const y = (value) => (20 - (value / top) * 20).toFixed(2);
  const first = POINTS - points.length;
  spark.line.setAttribute('points', points.map((value, index) => `${first + index},${y(value)}`).join(' '));
  spark.limit.setAttribute('y1', y(limit));
  spark.limit.setAttribute('y2', y(limit));
}

// The permits granted since the previous snapshot, as a mean over the last few.
function sample(lane, granted, now) {
  const before = lane.before;
  lane.before = { granted, now };
  if (!before || now <= before.now) return;
  // A lane that was forgotten in between counts from zero again.
  const more = granted >= before.granted ? granted - before.granted : granted;
  lane.samples.push({ more, time: (now - before.now) / 1000 });
  lane.samples = lane.samples.slice(-MEAN);
  lane.points.push(sum(lane.samples.map((one) => one.more)) / sum(lane.samples.map((one) => one.time)));
  lane.points = lane.points.slice(-POINTS);
}

function pauseText(view) {
  const { operator_pause: order, pause_remaining_seconds: left } = view;
  if (order) return order.remaining_seconds === undefined || order.remaining_seconds === null ? 'by an operator, until resumed' : `by an operator, ${seconds(order.remaining_seconds)}`;
  return left > 0 ? `throttled, ${seconds(left)}` : '';
}

// How long a call that arrives now waits. While CAMS is unreachable, or a lane has no tokens (a day), nothing says how long.
function predicted({ shadow, upstream, predicted_wait_seconds: wait }, unreachable) {
  if (shadow) return seconds(shadow.predicted_wait_seconds);
  return unreachable.includes(upstream) || wait >= DAY ? 'unknown' : seconds(wait);
}

function showLane(lane, view, now, unreachable) {
  sample(lane, view.granted, now);
  put(lane.queued, String(view.shadow ? view.shadow.queued : view.queued));
  put(lane.oldest, view.queued ? seconds(view.oldest_wait_seconds) : '');
  put(lane.predicted, predicted(view, unreachable));
  put(lane.grantedText, (lane.points.at(-1) ?? 0).toFixed(1));
  put(lane.rate, `${rate(view.effective_per_second)} of ${rate(view.limit_per_second)}`);
  put(lane.pause, pauseText(view));
  lane.row.classList.remove('idle');
  lane.rate.classList.toggle('amber', view.effective_per_second < 0.9 * view.limit_per_second);
  lane.oldest.classList.toggle('red', view.hold_used >= 0.8);
  lane.pause.classList.toggle('amber', Boolean(view.operator_pause));
  lane.pause.classList.toggle('red', !view.operator_pause && view.pause_remaining_seconds > 0);
  lane.isPaused = Boolean(view.operator_pause);
  put(lane.pauseButton, lane.isPaused ? 'Resume' : 'Pause');
  lane.pauseButton.setAttribute('aria-label', `${lane.isPaused ? 'Resume' : 'Pause'} ${laneName(lane)}`);
  lane.flushButton.setAttribute('aria-label', `Flush ${laneName(lane)}`);
  drawSpark(lane, view.limit_per_second);
  showTenants(lane, view.tenants);
}

// Flowgate has forgotten the lane: no call is queued, none was sent for one window, and the lane is not paused.
function showIdle(lane, now, unreachable) {
  if (now > lane.before.now) showLane(lane, { ...lane.view, granted: lane.before.granted, queued: 0, oldest_wait_seconds: 0, predicted_wait_seconds: 0, pause_remaining_seconds: 0, operator_pause: undefined, hold_used: 0, tenants: [] }, now, unreachable);
  lane.row.classList.add('idle');
}

function showTenants(lane, tenants) {
  const rows = tenants.map((one) => [one.client, one.tenant || 'no tenant', String(one.queued), `${(100 * one.share).toFixed(0)} %`, seconds(one.oldest_wait_seconds)]);
  const shown = JSON.stringify(rows);
  if (lane.shownTenants === shown) return;
  lane.shownTenants = shown;
  const names = ['Client', 'Tenant', 'Queued', 'Share', 'Oldest wait'];
  const row = (list) => make('tr', { role: 'row' }, ...list.map((text, index) => make('td', { role: 'cell', text, 'data-name': names[index], classes: index > 1 ? 'number' : '' })));
  const heads = names.map((text, index) => make('th', { scope: 'col', role: 'columnheader', text, classes: index > 1 ? 'number' : '' }));
  const table = make('table', { role: 'table', 'aria-label': `Tenants of ${laneName(lane)}` },
    make('thead', { role: 'rowgroup' }, make('tr', { role: 'row' }, ...heads)), make('tbody', { role: 'rowgroup' }, ...rows.map(row)));
  const inside = rows.length ? table : make('p', { classes: 'note', text: 'No calls are queued.' });
  lane.tenants.replaceChildren(make('td', { role: 'cell', colspan: '8' }, inside));
}

function showLanes({ lanes: views, all_lanes: all, at_ms: now, upstreams }) {
  const body = at('lanes').tBodies[0];
  const unreachable = upstreams.filter((one) => !one.reachable).map((one) => one.url);
  for (const view of views) {
    const name = JSON.stringify([view.account, view.action]);
    if (!lanes.has(name)) lanes.set(name, newLane(view));
    const lane = lanes.get(name);
    lane.view = view;
    lane.called = now;
    showLane(lane, view, now, unreachable);
  }
  for (const [name, lane] of lanes) {
    if (lane.called !== now) showIdle(lane, now, unreachable);
    if (now - lane.called > REMEMBERED_MS) {
      lanes.delete(name);
      lane.row.remove();
      lane.tenants.remove();
    }
  }
  const sorted = [...lanes.keys()].sort().map((name) => lanes.get(name));
  sorted.forEach((lane, index) => {
    const here = body.children[2 * index];
    if (here !== lane.row) body.insertBefore(lane.row, here ?? null);
    if (lane.row.nextSibling !== lane.tenants) lane.row.after(lane.tenants);
  });
  const hidden = all > views.length ? `Showing the ${views.length} of ${all} lanes with the longest queues.` : '';
  put(at('lanes-note'), sorted.length ? hidden : 'No lanes: no action with a limit was called recently.');
  at('lanes').hidden = sorted.length === 0;
}

// === Unknown outcomes ===

const flowName = ({ flow_name: name }) => name || 'a flow without a name';

function newUnknown(view) {
  const one = { view };
  const column = (name, classes = '') => {
    const node = cell(name, classes);
    const [text, more] = [make('span'), make('small')];
    node.append(make('span', {}, text, more));
    return { node, text, more };
  };
  one.flow = column('Flow', 'whole');
  one.who = column('Account, client');
  one.age = column('Age', 'number');
  one.state = column('State');
  one.id = column('Request id');
  const settle = make('button', { type: 'button', text: 'Settle', 'aria-label': `Settle ${flowName(view)}` });
  settle.addEventListener('click', () => ask('settle', one.view));
  const orders = cell('Operator actions', 'orders');
  orders.append(make('span', {}, settle));
  one.row = make('tr', { role: 'row' }, ...[one.flow, one.who, one.age, one.state, one.id].map(({ node }) => node), orders);
  return one;
}

// What happens to it, and the reason.
function unknownState({ state, found, reason, looks_refused: code, next_look_seconds: next }) {
  if (state === 'ambiguous') return ['Needs a decision', `Flowgate has looked for it: ${found}`];
  if (state === 'by_hand') return ['Needs a decision', reason];
  if (code) return ['CAMS does not permit looks', code];
  return [next === null ? 'Flowgate looks for it' : `Flowgate looks for it again in ${seconds(next)}`, reason];
}

function showUnknown({ unknown: views, all_unknown: all }) {
  const fill = ({ text, more }, first, second) => {
    put(text, first);
    put(more, second);
    more.hidden = !second;
  };
  for (const view of views) {
    if (!unknowns.has(view.request_id)) unknowns.set(view.request_id, newUnknown(view));
    const one = unknowns.get(view.request_id);
    one.view = view;
    fill(one.flow, flowName(view), view.space);
    fill(one.who, view.account, view.client);
    fill(one.age, seconds(view.age_seconds), '');
    fill(one.state, ...unknownState(view));
    fill(one.id, view.request_id, '');
    one.state.node.classList.toggle('red', view.state !== 'sought' || Boolean(view.looks_refused));
  }
  const shown = new Set(views.map((view) => view.request_id));
  for (const [id, one] of unknowns) {
    if (shown.has(id)) continue;
    unknowns.delete(id);
    one.row.remove();
  }
  // A row that stays in its place keeps the focus.
  const body = at('unknown').tBodies[0];
  views.forEach(({ request_id: id }, index) => {
    const { row } = unknowns.get(id);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  at('unknown-section').hidden = views.length === 0;
  const hidden = all > views.length ? ` Showing the ${views.length} oldest of ${all}; /unknown has all.` : '';
  put(at('unknown-note'), `CAMS may have created these flows. Flowgate does not send their calls again until it is known.${hidden}`);
}

// === Calls ===

const GOOD = ['ok'];
const BAD = ['outcome_unknown', 'unreachable', 'throttled'];
const FILTERS = ['account', 'client', 'outcome'];
const callRows = new Map();

function newCallRow(call) {
  const outcome = cell('Outcome', GOOD.includes(call.outcome) ? 'green' : BAD.includes(call.outcome) ? 'red' : 'amber');
  const status = call.status ? `${call.status} ${call.code}` : call.code;
  outcome.append(make('span', { text: call.outcome.replaceAll('_', ' ') }, ...(call.outcome === 'ok' ? [] : [make('small', { text: status })])));
  const plain = (column, text, classes = '') => {
    const node = cell(column, text ? classes : `${classes} empty`);
    node.append(make('span', { text }));
    return node;
  };
  const who = cell('Client, tenant', call.client ? '' : 'empty');
  who.append(make('span', { text: call.client }, ...(call.tenant ? [make('small', { text: call.tenant })] : [])));
  const why = cell('Call');
  const link = make('a', { classes: 'id', text: call.request_id, href: `calls/${encodeURIComponent(call.request_id)}`, title: 'Its way, and why it waited' });
  link.addEventListener('click', (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    showCall(call.request_id);
  });
  why.append(link);
  const ago = plain('Ago', seconds(call.age_seconds), 'number');
  const row = make('tr', { role: 'row' }, ago, plain('Account, action', laneName(call)), who,
    plain('Flow', call.flow_name ?? ''), outcome, plain('Waited', seconds(call.waited_ms / 1000), 'number'),
    plain('Took', seconds(call.took_ms / 1000), 'number'), plain('Sent', `${call.attempts} times`.replace(/^1 times$/, 'once'), 'number'), why);
  return { row, ago: ago.firstChild };
}

// A row stays the same as long as its call is shown, so that a link keeps the focus.
function showCalls(calls, note) {
  const body = at('calls').tBodies[0];
  const shown = new Set(calls.map((call) => call.request_id));
  for (const [id, { row }] of callRows) {
    if (shown.has(id)) continue;
    callRows.delete(id);
    row.remove();
  }
  calls.forEach((call, index) => {
    if (!callRows.has(call.request_id)) callRows.set(call.request_id, newCallRow(call));
    const { row, ago } = callRows.get(call.request_id);
    put(ago, seconds(call.age_seconds) || '0 s');
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  at('calls').hidden = calls.length === 0;
  put(at('calls-note'), note);
}

const filters = () => FILTERS.map((name) => [name, at(`filter-${name}`).value.trim()]).filter(([, value]) => value);

let isLoadingCalls = false;
// The last calls of the snapshot, or those that the filter selects.
async function showLastCalls({ calls, lanes }) {
  suggest('accounts', [...calls, ...lanes].map((one) => one.account));
  suggest('clients', calls.map((one) => one.client));
  const wanted = filters();
  if (wanted.length === 0) return showCalls(calls, calls.length ? '' : 'No call has ended since the start.');
  if (isLoadingCalls) return undefined;
  isLoadingCalls = true;
  try {
    const query = wanted.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join('&');
    const answer = await request(`calls?${query}`);
    if (!answer.ok) return undefined;
    const { calls: found } = await answer.json();
    // The filter may have changed meanwhile; the next snapshot shows the new one.
    if (JSON.stringify(filters()) !== JSON.stringify(wanted)) return undefined;
    return showCalls(found, found.length ? `The last ${found.length === 1 ? 'call' : `${found.length} calls`} that match.` : 'None of the last calls match.');
  } catch {
    return undefined;
  } finally {
    isLoadingCalls = false;
  }
}

function suggest(list, names) {
  const known = at(list);
  const all = [...new Set([...[...known.options].map((one) => one.value), ...names])].filter(Boolean).slice(0, 100);
  if (all.length !== known.options.length) known.replaceChildren(...all.map((value) => make('option', { value })));
}

async function showCall(id) {
  put(at('call-title'), `Call ${id}`);
  at('call-page').href = `calls/${encodeURIComponent(id)}`;
  at('call').replaceChildren(make('p', { classes: 'note', text: 'Loading.' }));
  at('call-dialog').showModal();
  try {
    const answer = await request(`calls/${encodeURIComponent(id)}`);
    if (!answer.ok) throw new Error((await answer.text()).trim());
    at('call').replaceChildren(...callNodes(await answer.json()));
  } catch (error) {
    at('call').replaceChildren(make('p', { role: 'alert', text: error.message }));
  }
}

// === The last 15 minutes ===

const rates = newChart('Sent', ' per second');
const queue = newChart('Queued', ' calls');
at('charts').append(rates.figure, queue.figure);

let history = null;
let historyAt = 0;
// A new sample comes every 5 seconds.
async function loadHistory(now) {
  if (now - historyAt < 5000) return;
  historyAt = now;
  try {
    const answer = await request('history');
    if (!answer.ok) return;
    history = await answer.json();
    showHistory();
  } catch {
    // The stream reports that Flowgate cannot be reached.
  }
}

function showHistory() {
  const { total, lanes: known } = history;
  const names = known.map(laneName);
  const select = at('chart-lane');
  const options = ['All lanes', ...names];
  if (JSON.stringify([...select.options].map((one) => one.text)) !== JSON.stringify(options)) {
    const before = select.value;
    select.replaceChildren(make('option', { value: '', text: 'All lanes' }), ...names.map((name) => make('option', { value: name, text: name })));
    select.value = names.includes(before) ? before : '';
  }
  const lane = known[names.indexOf(select.value)];
  const { granted_per_second: granted, queued, throttled } = lane ?? total;
  const paused = lane ? lane.paused : total.paused_lanes;
  const limits = lane ? granted.map((value) => (value === null ? null : lane.limit_per_second)) : total.limit_per_second;
  drawChart(rates, { values: granted, limits, throttled, paused });
  drawChart(queue, { values: queued, throttled, paused });
  const mean = (list) => sum(list) / list.length;
  const most = (list) => Math.max(...list);
  const rows = minuteRows([{ values: granted, merge: mean }, { values: queued, merge: most }, { values: throttled, merge: sum }, { values: paused.map((one) => one && Math.sign(one)), merge: (list) => 5 * sum(list) }]);
  const names2 = ['Time', 'Sent per second', 'Most queued', 'Throttled attempts', 'Paused, seconds'];
  at('minutes').tBodies[0].replaceChildren(...rows.map((row) => make('tr', { role: 'row' }, ...row.map((text, index) => make('td', { role: 'cell', text, 'data-name': names2[index], classes: index ? 'number' : 'whole' })))));
}

// === Health ===

// The four parties of a call, and how a part of it that has a problem is called.
const PARTIES = [['flowgate', 'Flowgate'], ['cams', 'CAMS'], ['store', 'the store'], ['callers', 'the callers']];

function showHealth(shown) {
  const found = troubles(shown).filter((one) => one.name);
  const bad = PARTIES.filter(([party]) => found.some((one) => one.party === party));
  put(at('verdict'), bad.length ? `Look at ${bad.map(([, name]) => name).join(' and ')}.` : 'No problems found.');
  at('verdict').className = bad.length ? 'red' : 'green';
  const ended = (outcome) => (history ? sum(history.total.ended[outcome].filter((count) => count !== null)) : 0);
  const count = (number, what) => (number ? [`${number} ${what}`] : []);
  const waiting = sum(shown.lanes.map((lane) => (lane.shadow ? lane.shadow.queued : lane.queued)));
  const oldest = Math.max(0, ...shown.lanes.map((lane) => lane.oldest_wait_seconds));
  const facts = {
    flowgate: [shown.phase === 'serving' ? `serving for ${seconds(shown.uptime_seconds)}` : shown.phase, ...count(ended('refused'), 'calls refused')],
    cams: [`${ended('ok') + ended('upstream_error')} calls answered`, ...count(ended('upstream_error'), 'with an error'), ...count(ended('throttled'), 'throttled'), ...count(ended('outcome_unknown'), 'without a certain answer'), ...count(ended('unreachable'), 'not sent')],
    store: [shown.store ? `${shown.store.replicas} ${shown.store.replicas === 1 ? 'replica shares' : 'replicas share'} the quota` : 'not used'],
    callers: [waiting ? `${waiting} calls wait, the oldest for ${seconds(oldest)}` : 'no call waits', ...count(ended('invalid'), 'invalid calls'), ...count(ended('cancelled'), 'disconnected')],
  };
  for (const [party] of PARTIES) {
    const names = [...new Set(found.filter((one) => one.party === party).map((one) => one.name))];
    const isUnused = party === 'store' && !shown.store;
    at(`health-${party}`).classList.toggle('off', isUnused);
    showTile(party, names.length > 0, names.join(', ') || (isUnused ? 'Not used' : 'No problem'), isUnused ? 'Each Flowgate has the whole quota.' : facts[party].join('; '));
  }
}

function showTile(party, isBad, state, facts) {
  const tile = at(`health-${party}`);
  tile.classList.toggle('bad', isBad);
  const line = tile.querySelector('.state');
  // A name like UpstreamUnreachable is wider than a narrow tile: it breaks between its words.
  if (line.textContent !== state) line.replaceChildren(...state.split(/(?<=[a-z])(?=[A-Z])/).flatMap((word) => [word, make('wbr')]));
  put(tile.querySelector('.facts'), facts);
}

// === Attention needed ===

// For each alert of the runbook, the party that causes it. Flowgate causes all that are not listed.
const PARTY_OF = {
  UpstreamUnreachable: 'cams', ThrottledUnderRate: 'cams', EffectiveRateLow: 'cams', OutcomeUnknown: 'cams', UnknownOutcomeOld: 'cams', UnknownOutcomeAmbiguous: 'cams',
  StoreDown: 'store', SignatureFailures: 'callers', CallsRefused: 'callers', QueueAgeNearHold: 'callers',
};
// These follow from a problem of CAMS or of the store, if there is one.
const FOLLOWS = ['CallsRefused', 'QueueAgeNearHold'];
const SLOWS = ['UpstreamUnreachable', 'ThrottledUnderRate', 'EffectiveRateLow', 'StoreDown'];

// Each entry: the runbook's section (empty: a notice), the lane, account or key concerned, and what to do, in one sentence.
function troubles(shown) {
  const { upstreams, store, journal, config, calls } = shown;
  const found = [];
  const add = (name, about, text, more) => found.push({ name, about, text, more });
  for (const { url, proxy, reachable, reason, down_seconds: down } of upstreams) {
    if (!reachable) add('UpstreamUnreachable', `${url}: ${reason}`, `${url} has been unreachable for ${seconds(down)}. Its calls wait until their hold ends, and nothing is sent; how long a new call waits is unknown. Check the network, DNS and ${proxy ? `the proxy ${proxy}` : 'proxies'} between this machine and it.`);
  }
  if (store && !store.up) add('StoreDown', '', 'The store of the shared quota does not respond. Each replica continues with its part of the quota, or refuses calls (quota.on_store_failure). Check the store and the network to it.');
  if (journal && !journal.up) add('JournalDown', '', 'The journal cannot be written; calls without a key continue. Check the disk and the permissions of its directory.');
  if (journal && journal.shared && !store) add('JournalShared', '', 'A process that was started earlier writes the same journal. They do not know each other\'s idempotency keys: a key that both get may create two flows. End the earlier one, or use a store.');
  if (config.refused) add('ReloadFailed', '', 'The last configuration that was read has mistakes; the previous one stays in force. Correct the mistakes below, then send SIGHUP or save the file again.', config.refused);
  for (const lane of shown.lanes) {
    if (!lane.operator_pause && lane.pause_remaining_seconds > 0) add('ThrottledUnderRate', laneName(lane), `CAMS throttles although Flowgate keeps to the limit; the lane is paused for ${seconds(lane.pause_remaining_seconds)}. If this continues, another program uses this account's quota: find it, or set a reserve.`);
    if (lane.effective_per_second < 0.9 * lane.limit_per_second) add('EffectiveRateLow', laneName(lane), `Flowgate has learned to send ${rate(lane.effective_per_second)} of ${rate(lane.limit_per_second)} calls per second. The rate recovers without throttling; if it stays low, the real limit is lower than configured, or shared.`);
    if (lane.hold_used >= 0.8) add('QueueAgeNearHold', laneName(lane), 'A call has waited for most of its hold and will be refused soon. Find the client with the longest queue (below), or allow longer holds.');
  }
  const recent = (test, within = 60) => calls.filter((call) => call.age_seconds <= within && test(call));
  const about = (list) => [...new Set(list.map((call) => call.account))].join(', ');
  const some = (name, list, text) => list.length && add(name, about(list), `${list.length} of the last ${calls.length} calls: ${text}`);
  // Calls without a session were refused, not sent: the account's session says why.
  some('AccountCredentials', recent((call) => call.code === 'Flowgate.AccountCredentials' && call.outcome !== 'refused', 600), 'CAMS rejects the credentials that Flowgate signs with. The replies to the callers and the log name the cause: the key, its secret, the session or the clock.');
  some('OutcomeUnknown', recent((call) => call.lost, 600), 'sent, but without a response, so CAMS may have processed them. Check with ListFlow before they are repeated.');
  const old = shown.unknown.filter((one) => one.age_seconds > 3600);
  if (old.length) add('UnknownOutcomeOld', about(old), 'The outcome of calls has been unknown for more than an hour. Look for their flows in CAMS and settle them below.');
  const ambiguous = shown.unknown.filter((one) => one.state === 'ambiguous');
  if (ambiguous.length) add('UnknownOutcomeAmbiguous', about(ambiguous), 'Flowgate has found flows that it cannot assign to a call. Compare them in CAMS and settle the calls below.');
  const limited = recent((call) => call.outcome === 'refused' && call.code === 'System.LimitControl');
  some('CallsRefused', limited, store && !store.up ? 'refused with Retry-After, while this Flowgate has less of the quota than with the store, or nothing.' : 'refused because the queue had no room or not enough time, with Retry-After. The demand exceeds the limit.');
  some('SignatureFailures', recent((call) => ['SignatureDoesNotMatch', 'IncompleteSignature', 'InvalidAccessKeyId.NotFound', 'InvalidTimeStamp.Expired', 'InvalidTimeStamp.Format'].includes(call.code)), 'the callers\' signatures, keys or clocks are wrong. The log names the callers.');
  const end = shown.certificate_ends_seconds;
  if (end !== null && end < 14 * DAY) add('CertificateExpiry', '', end < 0 ? 'The certificate of the proxy port has expired: renew it.' : `The certificate of the proxy port expires in ${seconds(end)}: renew it.`);
  for (const { account, source, seconds: left } of shown.credentials) {
    if (!source && left < 300) add('CredentialsExpiry', account, left < 0 ? 'The temporary credentials have expired: the program that renews their file has stopped.' : `The temporary credentials expire in ${seconds(left)}, and their file has not been renewed.`);
  }
  for (const { name, cause, sessions } of sessionTroubles(shown.credentials)) {
    const more = sessions.length - NAMED;
    const accounts = sessions.slice(0, NAMED).map((one) => one.account).join(', ');
    add(name, more > 0 ? `${accounts} and ${more} more` : accounts, sessionText(name, sessions), cause);
  }
  if (shown.phase !== 'serving') add('', shown.phase, 'Flowgate is shutting down: calls that fit into the grace finish, the others are refused with Retry-After.');
  if (shown.mode === 'observe') add('', 'mode = observe', 'The limits are not enforced; the queues shown are simulated.');
  for (const lane of shown.lanes.filter((lane) => lane.operator_pause)) add('', laneName(lane), 'Paused by an operator: no call is sent.');
  for (const warning of config.warnings) add('', 'configuration', warning);
  const cause = found.find((one) => SLOWS.includes(one.name));
  for (const one of found) one.party = PARTY_OF[cause && FOLLOWS.includes(one.name) ? cause.name : one.name] ?? 'flowgate';
  return found;
}

// The runbook's section for an account's session; empty if the session needs no attention.
function sessionTrouble({ source, seconds: left, waiting, failure }) {
  if (!source) return '';
  if (!failure) return left === null && waiting > 0 ? 'SessionExpiry' : '';
  if (['refused', 'old_token'].includes(failure.kind)) return 'SessionRefused';
  return left === null || left < 300 ? 'SessionExpiry' : '';
}

// The sessions that need attention, by section and cause: accounts may share a source.
function sessionTroubles(credentials) {
  const groups = new Map();
  for (const one of credentials) {
    const name = sessionTrouble(one);
    if (!name) continue;
    const cause = one.failure ? one.failure.text : 'The source has not answered yet.';
    const key = JSON.stringify([name, cause]);
    if (!groups.has(key)) groups.set(key, { name, cause, sessions: [] });
    groups.get(key).sessions.push(one);
  }
  return groups.values();
}

function sessionText(name, sessions) {
  const left = Math.min(...sessions.map((one) => one.seconds ?? -1));
  const waiting = sum(sessions.map((one) => one.waiting));
  const state = left > 0 ? `The session ends in ${seconds(left)} and could not be renewed.`
    : `There is no valid session: calls wait (${waiting} now) and are refused at the end of their hold.`;
  const advice = name === 'SessionRefused' ? 'The source of the credentials refuses Flowgate: correct the permission, the role, the token or the configuration.'
    : 'Restore the source of the credentials.';
  return `${state} ${advice}`;
}

let shownNames = '';
function showTroubles(shown) {
  const found = troubles(shown);
  // The numbers change each second; a screen reader should not read them again.
  const names = JSON.stringify(found.map(({ name, about, more }) => [name, about, more]));
  const item = ({ name, about, text, more }) => {
    const link = name ? [make('a', { text: name, href: RUNBOOK + name.toLowerCase(), target: '_blank', rel: 'noreferrer' }), ' '] : [];
    const list = [...link, make('strong', { text: about }), about ? ': ' : '', make('span', { text }), ...(more ? [make('pre', { text: more })] : [])];
    return make('li', { classes: name ? '' : 'notice' }, ...list);
  };
  const list = at('troubles');
  if (names !== shownNames) {
    shownNames = names;
    list.replaceChildren(...(found.length ? found.map(item) : [make('li', { classes: 'fine', text: 'No problems found.' })]));
  } else {
    found.forEach(({ text }, index) => put(list.children[index].querySelector('span'), text));
  }
  const reds = found.filter((one) => one.name).length;
  document.title = reds ? `(${reds}) Flowgate` : 'Flowgate';
}

// === State ===

// Credentials that expire: of a file, or a session that Flowgate obtains from a source.
function credentials(one) {
  const { source, seconds: left, waiting, failure } = one;
  if (!source) return `expire in ${seconds(Math.max(0, left))}`;
  const session = left === null ? 'no session yet' : left < 0 ? `session ended ${seconds(-left)} ago` : `session ends in ${seconds(left)}`;
  const waits = waiting ? `; ${waiting} calls wait for it` : '';
  // The cause is shown once.
  const cause = failure && !sessionTrouble(one) ? `: ${failure.text}` : '';
  return `${source}: ${session}${waits}${failure ? `; last refresh failed ${seconds(failure.seconds_ago)} ago${cause}` : ''}`;
}

function showState(shown) {
  const { upstreams, store, journal, config } = shown;
  const facts = [
    ['Phase', shown.phase, shown.phase !== 'serving'],
    ['Mode', shown.mode],
    ...upstreams.map(({ url, proxy, reachable, reason, down_seconds: down }) => [`CAMS at ${url}`, `${reachable ? 'reachable' : `not reachable for ${seconds(down)}: ${reason}`}${proxy ? `, through ${proxy}` : ''}`, !reachable]),
    ['Quota', store ? `shared by ${store.replicas} replicas; the store ${store.up ? 'responds' : 'does not respond'}` : 'of this process alone', store && !store.up],
    ['Journal', journal ? `${journal.up ? 'written' : 'cannot be written'}${journal.shared ? ', also by an earlier process' : ''}` : 'off', journal && (!journal.up || (journal.shared && !store))],
    ['Configuration', `generation ${config.generation}; last read ${seconds(config.read_seconds_ago)} ago, ${config.refused ? 'rejected' : 'in force'}`, config.refused],
    ['Certificate', shown.certificate_ends_seconds === null ? 'none: the proxy port is plain HTTP' : `expires in ${seconds(Math.max(0, shown.certificate_ends_seconds))}`],
    ...shown.credentials.map((one) => [`Credentials of ${one.account}`, credentials(one), one.failure || sessionTrouble(one)]),
    ['Bodies in memory', bytes(shown.queued_bytes)],
    ['Operator actions', shown.may_order ? 'with the token' : 'off (listen.admin_actions)'],
  ];
  const list = at('state');
  const fact = ([name, text, isRed]) => make('div', {}, make('dt', { text: name }), make('dd', { text, classes: isRed ? 'red' : '' }));
  list.replaceChildren(...facts.map(fact));
  put(at('version'), `${shown.instance} · version ${shown.version} · up ${seconds(shown.uptime_seconds)}`);
}

// === Operator actions ===

const ACTIONS = {
  pause: ['Pause', 'No call of this lane is sent until the pause is over. Calls that would miss their deadline are refused immediately, with Retry-After.'],
  resume: ['Resume', 'Queued calls are sent again, at the lane\'s rate.'],
  settle: ['Settle', 'Look for the flow in CAMS first. A repetition of the call gets this FlowId; if the flow was not created, it is sent.'],
  flush: ['Flush', 'All queued calls of this lane are refused now with System.LimitControl and Retry-After.'],
};

function showSettled() {
  const isCreated = at('ask-created').checked;
  at('ask-flow-row').hidden = !isCreated;
  at('ask-flow').required = pending.name === 'settle' && isCreated;
}

// `target` is a lane or an unknown outcome.
function ask(name, target) {
  pending = { name, target };
  const [label, text] = ACTIONS[name];
  put(at('ask-title'), `${label} ${name === 'settle' ? flowName(target) : laneName(target)}`);
  put(at('ask-text'), text);
  put(at('ask-do'), label);
  put(at('ask-error'), '');
  at('ask-seconds-row').hidden = name !== 'pause';
  at('ask-settle-row').hidden = name !== 'settle';
  at('ask-flow').value = '';
  at('ask-created').checked = true;
  showSettled();
  at('ask-token-row').hidden = session.token !== null;
  at('ask').showModal();
}

// The path and the body of the pending action.
function order() {
  const { name, target: { account, action, request_id } } = pending;
  if (name === 'settle') {
    const isCreated = at('ask-created').checked;
    return ['unknown/settle', { request_id, ...(isCreated ? { outcome: 'created', flow_id: at('ask-flow').value.trim() } : { outcome: 'not_created' }) }];
  }
  const isTimed = name === 'pause' && at('ask-seconds').value !== '';
  return [`lanes/${name}`, { account, action, ...(isTimed ? { seconds: Number(at('ask-seconds').value) } : {}) }];
}

// A second click would be a second order.
let isSending = false;

async function send() {
  if (isSending) return;
  isSending = true;
  const [path, target] = order();
  const shown = session.token ?? at('ask-token').value;
  const headers = { 'content-type': 'application/json', authorization: `Bearer ${shown}` };
  try {
    const answer = await request(path, { method: 'POST', headers, body: JSON.stringify(target) });
    if (answer.ok) {
      session.token = shown;
      at('ask-token').value = '';
      if (answer.status === 202) return put(at('ask-error'), 'The word holds, but it is not recorded yet: a restart may forget it.');
      return at('ask').close();
    }
    if (answer.status === 401) session.token = null;
    at('ask-token-row').hidden = session.token !== null;
    put(at('ask-error'), answer.status === 401 ? 'Wrong token.' : await answer.text());
  } catch (error) {
    put(at('ask-error'), `No answer (${error.message}). The action may still be performed.`);
  } finally {
    isSending = false;
  }
}

// === The stream ===

let heardAt = new Date();

// Flowgate has answered: it is not the one that is missing.
class Refused extends Error {}

function show(shown) {
  heardAt = new Date();
  showAge(false);
  showLink('Live', 'live');
  document.body.classList.toggle('may-order', shown.may_order);
  showState(shown);
  showTroubles(shown);
  showLanes(shown);
  showUnknown(shown);
  showHealth(shown);
  showLastCalls(shown);
  loadHistory(shown.at_ms);
}

// Without data the page does not know which other party has a problem.
function showLost(error) {
  const why = error.message;
  const since = heardAt.toTimeString().slice(0, 8);
  const isRefused = error instanceof Refused;
  showAge(true);
  showLink(`Not connected (${why}); the data below is old`, 'lost');
  const verdict = isRefused ? 'Flowgate gives this page no data' : 'Look at Flowgate, or at the network to it: no data';
  put(at('verdict'), `${verdict} since ${since}.`);
  at('verdict').className = isRefused ? '' : 'red';
  showTile('flowgate', !isRefused, 'No data', `since ${since}: ${why}`);
  document.title = '(no data) Flowgate';
}

// Old data is grey, and nothing is done because of it: Flowgate would perform the action when it continues.
function showAge(isOld) {
  document.body.classList.toggle('old', isOld);
  for (const button of document.querySelectorAll('.orders button, #ask-do')) button.disabled = isOld;
}

function showLink(text, classes) {
  put(at('link'), text);
  at('link').className = classes;
}

// Rejects if the promise takes too long: the connection to a process that hangs stays open.
function inTime(promise) {
  const late = (resolve, reject) => setTimeout(reject, 1000 * SILENCE_SECONDS, new Error(`no data for ${SILENCE_SECONDS} s`));
  return Promise.race([promise, new Promise(late)]);
}

async function follow({ signal }) {
  const answer = await inTime(request('events', { signal }));
  if (answer.status === 401) {
    showLink('Token required', '');
    return askForToken(session.token === null ? '' : 'Wrong token.');
  }
  if (!answer.ok) throw new Refused((await inTime(answer.text())).trim());
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ''; ; ) {
    const { value, done } = await inTime(reader.read());
    if (done) throw new Error('the stream has ended');
    const events = (text + value).split('\n\n');
    text = events.pop();
    for (const event of events) show(JSON.parse(event.replace(/^data: /, '')));
  }
}

async function keepFollowing() {
  for (;;) {
    const stream = new AbortController();
    try {
      await follow(stream);
    } catch (error) {
      showLost(error);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    } finally {
      stream.abort();
    }
  }
}

at('ask-created').addEventListener('change', showSettled);
at('ask-not-created').addEventListener('change', showSettled);
at('ask-cancel').addEventListener('click', () => at('ask').close());
at('ask-form').addEventListener('submit', (event) => {
  event.preventDefault();
  send();
});
at('call-close').addEventListener('click', () => at('call-dialog').close());
at('chart-lane').addEventListener('change', () => history && showHistory());
at('filter').addEventListener('submit', (event) => event.preventDefault());
at('filter-clear').addEventListener('click', () => {
  for (const name of FILTERS) at(`filter-${name}`).value = '';
});
keepFollowing();
