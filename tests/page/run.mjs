// Tests the status page in a real browser, with the binary and the simulator under load: the page shows the load, performs operator actions, and
// neither leaks nor runs what callers send. Screenshots go to the folder of SCREENSHOTS. Builds nothing: FLOWGATE_BIN and CAMS_SIM_BIN name the binaries.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, createHmac, randomUUID } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const TOKEN = 'operators-token-1';
const ACCOUNTS = { acme: { key: 'LTAI-page-1', secret: 'page-secret-1' }, partner: { key: 'LTAI-page-2', secret: 'page-secret-2' } };
const SCREENSHOTS = process.env.SCREENSHOTS ?? 'target/screenshots';
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
// Callers may send this as the name of a flow or a tenant: it must stay text.
const HOSTILE = '<img src=x onerror="window.hit=1">';
// As root Chromium has no sandbox; the other flags stop its requests to its maker's hosts.
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

const folder = mkdtempSync(join(tmpdir(), 'flowgate-page-'));
const children = [];
let failed = 0;

// === The processes ===

function start(binary, args, env, ready) {
  const child = spawn(binary, args, { env: { PATH: process.env.PATH, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  children.push(child);
  const ended = new Promise((resolve) => child.on('exit', resolve));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    ended.then((code) => reject(new Error(`${binary} ended with ${code}`)));
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        const found = ready(line);
        if (found) resolve({ ...found, child, ended });
      });
    }
  });
}

function simulator() {
  const keys = Object.entries(ACCOUNTS).flatMap(([id, { key, secret }]) => ['--key', `${key}:${secret}:${id}`]);
  const args = ['--listen', '127.0.0.1:0', ...keys];
  return start(process.env.CAMS_SIM_BIN, args, {}, (line) => {
    const found = line.match(/listening on (http:\S+)/);
    return found && { url: found[1] };
  });
}

// `upstreams` are the URLs of the accounts that do not use the first one.
function flowgate(upstream, upstreams = {}) {
  const file = join(folder, `flowgate-${children.length}.toml`);
  const account = ([id, { key }]) => `
[[accounts]]
id = "${id}"
access_key_id = "${key}"
access_key_secret = { env = "SECRET_${id}" }
${upstreams[id] ? `upstream = "${upstreams[id]}"` : ''}
`;
  writeFileSync(file, `
log = { format = "json" }
[listen]
proxy = "127.0.0.1:0"
admin = "127.0.0.1:0"
admin_token = { env = "OPERATORS" }
admin_actions = true
[upstream]
url = "${upstream}"
${Object.entries(ACCOUNTS).map(account).join('')}
[queue]
hold = "100s"
`);
  const secrets = Object.fromEntries(Object.entries(ACCOUNTS).map(([id, { secret }]) => [`SECRET_${id}`, secret]));
  return start(process.env.FLOWGATE_BIN, ['--config', file], { OPERATORS: TOKEN, ...secrets }, (line) => {
    const event = line.startsWith('{') ? JSON.parse(line) : {};
    return event.message === 'flowgate is ready' && { proxy: event.proxy, admin: `http://${event.admin}` };
  });
}

const encode = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
const hash = (text) => createHash('sha256').update(text).digest('hex');

// CreateFlow, signed with Alibaba's V3 as the SDKs do, with an idempotency key if there is one. Resolves to parts of the response.
function createFlow(proxy, flowName, tenant, key, account = 'acme') {
  const query = Object.entries({ Categories: '["SIGN_UP"]', CustSpaceId: tenant, FlowName: flowName }).map(([name, value]) => `${name}=${encode(value)}`).join('&');
  const headers = {
    host: proxy, 'x-acs-action': 'CreateFlow', 'x-acs-content-sha256': hash(''), 'x-acs-date': `${new Date().toISOString().slice(0, 19)}Z`,
    'x-acs-signature-nonce': randomUUID(), 'x-acs-version': '2020-06-06',
  };
  const names = Object.keys(headers).sort();
  const canonical = ['POST', '/', query, ...names.map((name) => `${name}:${headers[name]}`), '', names.join(';'), hash('')].join('\n');
  const signature = createHmac('sha256', ACCOUNTS[account].secret).update(`ACS3-HMAC-SHA256\n${hash(canonical)}`).digest('hex');
  headers.authorization = `ACS3-HMAC-SHA256 Credential=${ACCOUNTS[account].key},SignedHeaders=${names.join(';')},Signature=${signature}`;
  const [hostname, port] = proxy.split(':');
  return new Promise((resolve, reject) => {
    const call = request({ hostname, port, method: 'POST', path: `/?${query}`, headers: { ...headers, ...(key ? { 'idempotency-key': key } : {}), 'content-length': 0 } }, (answer) => {
      let body = '';
      answer.on('data', (data) => { body += data; });
      answer.on('end', () => {
        const { Code: code, Data: data } = JSON.parse(body);
        resolve({ status: answer.statusCode, code, flowId: data?.FlowId, key: answer.headers['x-flowgate-idempotency'], retryAfter: answer.headers['x-acs-retry-after'] });
      });
    });
    call.on('error', reject);
    call.end();
  });
}

const crowd = (proxy, count, name = HOSTILE) => Array.from({ length: count }, (_, index) => createFlow(proxy, `${name} ${index}`, index % 3 ? `cams-${index % 3}` : HOSTILE));

// Queues calls whose answers do not matter.
function queueCalls(proxy, count, account) {
  for (let index = 0; index < count; index += 1) createFlow(proxy, `welcome ${index}`, 'cams-1', undefined, account).catch(() => {});
}

// === The page ===

async function step(name, run) {
  try {
    await run();
    console.log(`ok      ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n        ${String(error.stack ?? error).replaceAll('\n', '\n        ')}`);
  }
}

// A page that records errors and requests to other origins.
async function open(browser, origin, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const noted = { errors: [], foreign: [] };
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && noted.errors.push(message.text()));
  page.on('pageerror', (error) => noted.errors.push(String(error)));
  page.on('request', (call) => !call.url().startsWith(`${origin}/`) && !call.url().startsWith('data:') && noted.foreign.push(call.url()));
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  return { context, page, noted };
}

const column = (page, name) => page.locator(`#lanes > tbody > tr:not(.tenants) > td[data-name="${name}"]`);
const until = (page, test, arg) => page.waitForFunction(test, arg, { timeout: 20_000 });
const queued = async (page) => Number(await column(page, 'Queued').innerText());

async function isAccessible(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run());
  assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]), []);
}

// The words that are broken across lines: of each text node, because names of alerts may break between their own words.
const cutWords = (page, selector) => page.locator(selector).evaluateAll((nodes) => {
  const cut = [];
  for (const node of nodes) {
    const texts = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      for (const { index, 0: word } of texts.currentNode.data.matchAll(/\S+/g)) {
        const range = new Range();
        range.setStart(texts.currentNode, index);
        range.setEnd(texts.currentNode, index + word.length);
        if (range.getClientRects().length > 1) cut.push(word);
      }
    }
  }
  return cut;
});

// The page gets this snapshot each second, instead of Flowgate's.
const feed = (page, snapshot) => page.addInitScript((snapshot) => {
  const { fetch } = window;
  const send = (stream) => stream.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(snapshot)}\n\n`));
  const start = (stream) => {
    send(stream);
    setInterval(send, 1000, stream);
  };
  window.fetch = async (url, options) => (String(url).endsWith('/events') ? new Response(new ReadableStream({ start })) : fetch(url, options));
}, snapshot);

const CAUSE = 'sts.aliyuncs.com: the service refuses the request, status 403, code AuthenticationFail.NoPermission, request id R-1';

// A snapshot with two accounts that share a source, which refuses, and one whose session ends soon.
function withoutSessions() {
  const failure = (kind, text) => ({ kind, seconds_ago: 5, text });
  const call = (account, action) => ({
    account, action, client: 'team-shop-web', tenant: 'tenant-1', flow_name: 'welcome', outcome: 'refused', code: 'Flowgate.AccountCredentials', status: 403,
    attempts: 0, waited_ms: 2500, took_ms: 2500, age_seconds: 3, request_id: `R-${account}`, cams_request_id: null,
  });
  return {
    at_ms: Date.now(), version: '0', instance: 'gateway-0', uptime_seconds: 100, phase: 'serving', mode: 'enforce', may_order: false, upstreams: [], store: null, journal: null, lanes: [], all_lanes: 0,
    config: { generation: 0, read_seconds_ago: 1, warnings: [], refused: null }, certificate_ends_seconds: null, queued_bytes: 0,
    credentials: [
      { account: 'acme', source: 'oidc', seconds: null, waiting: 20, failure: failure('refused', CAUSE) },
      { account: 'partner', source: 'oidc', seconds: null, waiting: 2, failure: failure('refused', CAUSE) },
      { account: 'beta', source: 'uri', seconds: 120, waiting: 0, failure: failure('unreachable', '127.0.0.1:8080: connection refused') },
      { account: 'fine', source: 'ecs_role', seconds: 3000, waiting: 0, failure: null },
    ],
    unknown: [], all_unknown: 0,
    calls: [call('partner', 'CreateFlow'), call('the-account-of-the-shop', 'TriggerChatFlow')],
  };
}

async function looks(page, name, scheme, width) {
  await page.emulateMedia({ colorScheme: scheme });
  await page.setViewportSize({ width, height: 900 });
  await isAccessible(page);
  const [needs, has] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  assert.ok(needs <= has, `${name} is ${needs} wide, on ${has}`);
  await page.screenshot({ path: join(SCREENSHOTS, `${name}.png`), fullPage: true });
}

// 15 minutes with a gap, a pause, throttled attempts and a growing queue, of two lanes.
function quarterOfAnHour() {
  const list = (value) => Array.from({ length: 180 }, (_, slot) => (slot >= 40 && slot < 50 ? null : value(slot)));
  const granted = list((slot) => (slot >= 100 && slot < 110 ? 0 : slot < 20 ? 0 : slot < 60 ? 2 + (slot % 3) : 4.8));
  const queued = list((slot) => (slot < 60 ? 0 : Math.round((slot - 60) * 1.7)));
  const throttled = list((slot) => (slot >= 97 && slot < 100 ? 2 : slot === 150 ? 1 : 0));
  const paused = list((slot) => (slot >= 98 && slot < 110 ? 1 : 0));
  const zero = list(() => 0);
  const ended = Object.fromEntries(['ok', 'upstream_error', 'throttled', 'refused', 'outcome_unknown', 'unreachable', 'cancelled', 'invalid'].map((name) => [name, zero]));
  const lane = (account, granted, limit) => ({ account, action: 'CreateFlow', limit_per_second: limit, granted_per_second: granted, queued, throttled, paused });
  return {
    interval_seconds: 5, newest_seconds_ago: 1, lanes: [lane('acme', granted, 5), lane('partner', zero, 10)],
    total: { granted_per_second: granted, limit_per_second: list((slot) => (slot < 20 ? 0 : 5)), queued, throttled, paused_lanes: paused, ended: { ...ended, ok: list(() => 20), refused: list((slot) => (slot > 170 ? 3 : 0)) } },
  };
}

async function all(browser, sim, gate) {
  const origin = gate.admin;
  const { context, page, noted } = await open(browser, origin);
  const answers = [];
  const send = (count) => answers.push(...crowd(gate.proxy, count));
  const faults = (rules) => fetch(`${sim.url}/__faults`, { method: 'POST', body: JSON.stringify(rules) });
  const arrivals = async () => (await (await fetch(`${sim.url}/__arrivals`)).json()).length;
  const button = (name) => page.getByRole('button', { name, exact: true });

  await step('an idle Flowgate is shown', async () => {
    await page.goto(`${origin}/`);
    await until(page, () => document.getElementById('link').textContent === 'Live');
    assert.match(await page.locator('#lanes-note').innerText(), /No lane/);
    assert.match(await page.locator('#troubles').innerText(), /No problems found/);
    assert.match(await page.locator('#state').innerText(), /serving/);
    await isAccessible(page);
  });

  await step('a lane appears with its first call, and stays for a while when it is forgotten', async () => {
    send(1);
    await until(page, () => document.querySelector('#lanes tbody tr:not(.idle)') !== null);
    await until(page, () => document.querySelector('#lanes tr.idle') !== null);
    assert.equal(await column(page, 'Queued').innerText(), '0');
  });

  await step('a load runs and the numbers move', async () => {
    send(90);
    await until(page, () => document.querySelector('td[data-name="Queued"]')?.textContent > 10);
    const before = await queued(page);
    await until(page, (before) => Number(document.querySelector('td[data-name="Queued"]').textContent) <= before - 10, before);
    // A mean over seconds, which starts at zero.
    await until(page, () => Math.abs(document.querySelector('td[data-name="Granted per second"]').textContent - 5) <= 1.5);
    const points = await page.locator('.spark polyline').first().getAttribute('points');
    assert.ok(points.split(' ').length >= 2, points);
    assert.match(await column(page, 'Rate / limit').innerText(), /^4\.\d+ of 5$/);
    assert.match(await column(page, 'Oldest wait').innerText(), /^\d+(\.\d)? s$/);
  });

  await step('tenants and recent calls are shown, and hostile names stay text', async () => {
    await button('acme / CreateFlow').click();
    await until(page, (name) => document.querySelector('tr.tenants').textContent.includes(name), HOSTILE);
    await until(page, (name) => document.querySelector('#calls td[data-name="Flow"]')?.textContent.startsWith(name), HOSTILE);
    const made = await page.evaluate(() => [document.querySelectorAll('img, b, script:not([src])').length, window.hit]);
    assert.deepEqual(made, [0, undefined]);
    assert.equal(await page.locator('tr.tenants tbody tr').count(), 3);
    assert.equal(await page.locator('#calls td[data-name="Outcome"]').first().innerText(), 'ok');
  });

  await step('a throttle is shown, with what to do', async () => {
    await faults(['next=1,throttle,acs-retry-after=8000']);
    await until(page, () => document.querySelector('td[data-name="Pause"]').textContent.startsWith('throttled'));
    const link = page.getByRole('link', { name: 'ThrottledUnderRate' });
    assert.match(await link.getAttribute('href'), /docs\/runbook\.md#throttledunderrate$/);
    assert.match(await page.title(), /^\(\d\) Flowgate$/);
  });

  await step('the first screen says where the problem is', async () => {
    const parties = await page.locator('#health li').evaluateAll((tiles) => tiles.map((tile) => [tile.querySelector('h3').textContent, tile.classList.contains('bad')]));
    assert.deepEqual(parties, [['Flowgate', false], ['CAMS', true], ['Store', false], ['Callers', false]]);
    assert.match(await page.locator('#verdict').innerText(), /^Look at CAMS\.$/);
    assert.match(await page.locator('#version').innerText(), /^\S+ · version \d+\.\d+\.\d+ · up \d/);
    // The verdict, the charts and the first problem are on the first screen.
    for (const id of ['verdict', 'charts', 'troubles-title']) assert.ok((await page.locator(`#${id}`).boundingBox()).y < 900, id);
  });

  await step('the last 15 minutes are drawn from samples, in total and for a lane', async () => {
    await until(page, () => document.querySelectorAll('#charts .line').length >= 2);
    await until(page, () => document.querySelector('#charts .throttled') !== null && document.querySelector('#charts .limit') !== null);
    const labels = await page.locator('svg.chart').evaluateAll((charts) => charts.map((chart) => chart.getAttribute('aria-label')));
    assert.match(labels[0], /^Sent over 15 minutes: now \d\S* per second, highest \d\S* per second, 1 intervals? of 5 seconds with throttled attempts/);
    await page.getByLabel('Lane', { exact: true }).selectOption('acme / CreateFlow');
    assert.match(await page.locator('#charts figcaption').first().innerText(), /per second/);
    await page.getByText('Values as a table').focus();
    await page.keyboard.press('Enter');
    assert.match(await page.locator('#minutes tbody tr').first().innerText(), /last minute/);
    await isAccessible(page);
    await page.keyboard.press('Enter');
    await page.getByLabel('Lane', { exact: true }).selectOption('');
  });

  await step('the page is readable and fits: light, dark and narrow', async () => {
    await looks(page, 'light', 'light', 1280);
    await looks(page, 'dark', 'dark', 1280);
    await looks(page, 'narrow-light', 'light', 390);
    await looks(page, 'narrow-dark', 'dark', 390);
    await page.emulateMedia({ colorScheme: 'light' });
    await page.setViewportSize({ width: 1280, height: 900 });
  });

  await step('a wrong token performs no action', async () => {
    await until(page, () => document.querySelector('td[data-name="Pause"]').textContent === '');
    await button('Pause acme / CreateFlow').click();
    await page.getByLabel(/^Token/).last().fill('not-the-token');
    await page.locator('#ask-do').click();
    await until(page, () => document.getElementById('ask-error').textContent === 'Wrong token.');
    assert.deepEqual(noted.errors.splice(0).map((text) => text.includes('401')), [true]);
    await isAccessible(page);
    await page.screenshot({ path: join(SCREENSHOTS, 'order.png') });
  });

  await step('the pause button pauses, and the token is asked for once', async () => {
    await page.getByLabel(/^Token/).last().fill(TOKEN);
    await page.keyboard.press('Enter');
    await until(page, () => document.querySelector('td[data-name="Pause"]').textContent === 'by an operator, until resumed');
    const before = await arrivals();
    send(5);
    await until(page, () => document.querySelector('td[data-name="Granted per second"]').textContent === '0.0');
    assert.equal(await arrivals(), before);
    await button('Resume acme / CreateFlow').click();
    assert.equal(await page.locator('#ask-token-row').isHidden(), true);
    await page.locator('#ask-do').click();
    await until(page, () => document.querySelector('td[data-name="Pause"]').textContent === '');
    await until(page, () => document.querySelector('td[data-name="Granted per second"]').textContent > 0);
    assert.ok(await arrivals() > before);
  });

  await step('flush answers the queued calls', async () => {
    send(40);
    await until(page, () => document.querySelector('td[data-name="Queued"]').textContent > 20);
    await button('Flush acme / CreateFlow').click();
    await page.locator('#ask-do').click();
    const ends = await Promise.all(answers);
    const flushed = ends.filter(({ code }) => code === 'System.LimitControl');
    assert.ok(flushed.length >= 10 && flushed.every(({ status, retryAfter }) => status === 400 && retryAfter > 0), JSON.stringify(flushed));
    assert.equal(ends.filter(({ code }) => code === 'OK').length, ends.length - flushed.length);
    await until(page, () => document.getElementById('troubles').textContent.includes('CallsRefused'));
    const metrics = await (await fetch(`${origin}/metrics`)).text();
    for (const action of ['pause', 'resume', 'flush']) assert.ok(metrics.includes(`flowgate_operator_actions_total{action="${action}"} 1\n`), action);
  });

  await step('a session that is missing has one entry with its cause, and no name is cut on a narrow screen', async () => {
    const { context, page } = await open(browser, origin);
    await feed(page, withoutSessions());
    await page.goto(`${origin}/`);
    await until(page, () => document.getElementById('calls').tBodies[0].rows.length === 2);
    const shown = await page.locator('main').innerText();
    assert.equal(shown.split(CAUSE).length - 1, 1, shown);
    const troubles = await page.locator('#troubles').innerText();
    assert.match(troubles, /SessionRefused acme, partner: There is no valid session: calls wait \(22 now\)/);
    assert.match(troubles, /SessionExpiry beta: The session ends in 2 min/);
    // A call without a session was not sent: CAMS has rejected nothing.
    assert.doesNotMatch(troubles, /AccountCredentials [a-z]/);
    assert.match(await page.locator('#state').innerText(), /oidc: no session yet; 20 calls wait for it; last refresh failed/);
    await looks(page, 'sessions-narrow', 'light', 390);
    assert.deepEqual(await cutWords(page, '#calls td[data-name^="Account"] span'), []);
    await context.close();
  });

  await step('a quarter of an hour with a gap, a pause and throttles is drawn', async () => {
    const { context, page, noted } = await open(browser, origin);
    await page.route('**/history', (route) => route.fulfill({ contentType: 'application/json', body: JSON.stringify(quarterOfAnHour()) }));
    await page.goto(`${origin}/`);
    await until(page, () => document.querySelectorAll('#charts .gap').length === 2);
    const count = (name) => page.locator(`#charts .${name}`).count();
    assert.deepEqual([await count('throttled'), await count('paused'), await count('line')], [4, 2, 4]);
    await page.locator('svg.chart').first().hover({ position: { x: 4, y: 20 } });
    assert.match(await page.locator('.read').first().innerText(), /^1[45]\.\d min ago: 0 per second$/);
    for (const [name, scheme, width] of [['history', 'light', 1280], ['history-dark', 'dark', 1280], ['history-narrow', 'light', 390]]) await looks(page, name, scheme, width);
    await page.getByLabel('Lane', { exact: true }).selectOption('partner / CreateFlow');
    assert.match(await page.locator('svg.chart').first().getAttribute('aria-label'), /now 0 per second/);
    assert.deepEqual(noted, { errors: [], foreign: [] });
    await context.close();
  });

  await step('calls are filtered, and a call is explained by keyboard, in the page and on a page of its own', async () => {
    await page.getByLabel('Outcome', { exact: true }).selectOption('refused');
    // All rows may have been refused calls before.
    await until(page, () => /^The last \d+ calls that match\.$/.test(document.getElementById('calls-note').textContent));
    await until(page, () => [...document.querySelectorAll('#calls td[data-name="Outcome"]')].every((cell) => cell.textContent.startsWith('refused')));
    await page.getByLabel('Account', { exact: true }).fill('nobody');
    await until(page, () => document.getElementById('calls-note').textContent === 'None of the last calls match.');
    await button('Clear').click();
    await until(page, () => document.querySelectorAll('#calls tbody tr').length === 50);
    await page.getByLabel('Outcome', { exact: true }).selectOption('ok');
    await until(page, () => document.querySelector('#calls td[data-name="Outcome"]')?.textContent === 'ok');
    // The call that CAMS throttled.
    const { calls } = await (await fetch(`${origin}/calls?limit=2000&outcome=ok`)).json();
    const slowest = calls.toSorted((a, b) => b.attempts - a.attempts)[0];
    const link = page.getByRole('link', { name: slowest.request_id });
    await link.focus();
    // The row keeps the focus while snapshots come.
    await page.waitForTimeout(2200);
    await page.keyboard.press('Enter');
    await until(page, () => document.querySelector('#call h3') !== null);
    const text = await page.locator('#call').innerText();
    assert.match(text, /was sent 2 times/);
    assert.match(text, /attempt 1: CAMS answered System\.LimitControl/);
    assert.match(text, /It was queued again once, after System\.LimitControl/);
    assert.ok(text.includes(HOSTILE), text);
    assert.deepEqual(await page.evaluate(() => [document.querySelectorAll('img').length, window.hit]), [0, undefined]);
    await isAccessible(page);
    await page.screenshot({ path: join(SCREENSHOTS, 'call-dialog.png') });
    await page.keyboard.press('Escape');
    assert.equal(await page.locator('#call-dialog').isVisible(), false);
    assert.equal(await link.evaluate((node) => node === document.activeElement), true);
    await button('Clear').click();
    const own = await open(browser, origin);
    await own.page.goto(`${origin}/calls/${slowest.request_id}`);
    await until(own.page, () => document.querySelector('#call h3') !== null);
    assert.equal(await own.page.locator('#call .summary').innerText(), text.split('\n')[0]);
    await looks(own.page, 'call', 'light', 1280);
    await looks(own.page, 'call-dark', 'dark', 1280);
    await looks(own.page, 'call-narrow', 'light', 390);
    assert.deepEqual(own.noted, { errors: [], foreign: [] });
    await own.page.goto(`${origin}/calls/none`);
    assert.match(await own.page.getByRole('alert').filter({ hasText: 'No call' }).innerText(), /No call with this request id/);
    await own.context.close();
  });

  await step('unknown outcomes are shown with hostile names as text, and are settled by keyboard', async () => {
    await faults(['named=lost,close-after']);
    const lost = await Promise.all(['first', 'second'].map((name) => createFlow(gate.proxy, `lost ${name} ${HOSTILE}`, 'cams-1', `key-${name}`)));
    assert.deepEqual(lost.map(({ status, key }) => [status, key]), [[409, 'unknown'], [409, 'unknown']]);
    await until(page, () => document.getElementById('unknown').tBodies[0].rows.length === 2);
    const shown = await page.locator('#unknown tbody').innerText();
    assert.match(shown, /lost first <img src=x onerror="window.hit=1">/);
    assert.match(shown, /Needs a decision\s+the connection closed before an answer/);
    assert.deepEqual(await page.evaluate(() => [document.querySelectorAll('img').length, window.hit]), [0, undefined]);
    await looks(page, 'unknown', 'light', 1280);
    await looks(page, 'unknown-narrow', 'light', 390);
    await page.setViewportSize({ width: 1280, height: 900 });
    // By keyboard alone. The row keeps the focus while the numbers change.
    await button(`Settle lost first ${HOSTILE}`).focus();
    await page.waitForTimeout(1500);
    await page.keyboard.press('Enter');
    assert.equal(await page.locator('#ask-flow-row').isHidden(), false);
    await isAccessible(page);
    await page.screenshot({ path: join(SCREENSHOTS, 'settle.png') });
    await page.locator('#ask-flow').focus();
    await page.keyboard.type('not an id');
    await page.keyboard.press('Enter');
    await until(page, () => document.getElementById('ask-error').textContent.startsWith('Expected a flow_id'));
    assert.deepEqual(noted.errors.splice(0).map((text) => text.includes('400')), [true]);
    await page.locator('#ask-flow').fill('77');
    await page.keyboard.press('Enter');
    await until(page, () => document.getElementById('unknown').tBodies[0].rows.length === 1);
    const again = await createFlow(gate.proxy, `lost first ${HOSTILE}`, 'cams-1', 'key-first');
    assert.deepEqual([again.status, again.key, again.flowId], [200, 'replayed', '77']);
    await button(`Settle lost second ${HOSTILE}`).focus();
    await page.keyboard.press('Enter');
    await page.locator('#ask-created').focus();
    await page.keyboard.press('ArrowDown');
    assert.equal(await page.locator('#ask-flow-row').isHidden(), true);
    await page.keyboard.press('Enter');
    await until(page, () => document.getElementById('unknown-section').hidden);
    await faults([]);
    const sent = await createFlow(gate.proxy, `lost second ${HOSTILE}`, 'cams-1', 'key-second');
    assert.deepEqual([sent.status, sent.key], [200, 'first']);
  });

  await step('nothing is stored, nothing leaves, nothing is broken', async () => {
    const kept = await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie, location.href, window.violations]);
    assert.deepEqual(kept, [0, 0, '', `${origin}/`, []]);
    assert.deepEqual(noted, { errors: [], foreign: [] });
    assert.deepEqual(await context.cookies(), []);
  });

  await step('beyond loopback the page requires the token before it shows data', async () => {
    const { page, noted } = await open(browser, origin, { viewport: { width: 390, height: 700 } });
    // The admin port's response there; a test binds only loopback.
    await page.route('**/events', (route) => (route.request().headers().authorization === `Bearer ${TOKEN}` ? route.continue() : route.fulfill({ status: 401, body: 'no\n' })));
    await page.goto(`${origin}/`);
    await page.locator('#gate-token').waitFor();
    await page.screenshot({ path: join(SCREENSHOTS, 'token.png') });
    await page.locator('#gate-token').fill('wrong');
    await page.keyboard.press('Enter');
    await until(page, () => document.getElementById('gate-error').textContent !== '');
    await page.locator('#gate-token').fill(TOKEN);
    await page.keyboard.press('Enter');
    await until(page, () => document.getElementById('link').textContent === 'Live');
    assert.deepEqual([noted.errors.every((text) => text.includes('401')), noted.foreign], [true, []]);
    // The page of a call has no data before the token is entered, either.
    await page.route('**/calls/*', (route) => {
      const { accept, authorization } = route.request().headers();
      return accept.includes('text/html') || authorization === `Bearer ${TOKEN}` ? route.continue() : route.fulfill({ status: 401, body: 'no\n' });
    });
    const { calls } = await (await fetch(`${origin}/calls?limit=1`)).json();
    await page.goto(`${origin}/calls/${calls[0].request_id}`);
    await page.locator('#gate-token').fill(TOKEN);
    await page.keyboard.press('Enter');
    await until(page, () => document.querySelector('#call h3') !== null);
    await page.close();
  });

  await step('a drain ends the stream, and the page reports that its data is old', async () => {
    gate.child.kill('SIGTERM');
    assert.equal(await gate.ended, 0);
    await until(page, () => document.getElementById('link').textContent.startsWith('Not connected'));
  });
}

// A Flowgate that cannot reach CAMS for one of two accounts, then hangs, continues, and is killed.
async function silence(browser, sim) {
  // No program listens on port 1.
  const gate = await flowgate('http://127.0.0.1:1', { partner: sim.url });
  const { context, page, noted } = await open(browser, gate.admin);
  const schemes = async (name) => {
    await looks(page, name, 'light', 1280);
    await looks(page, `${name}-dark`, 'dark', 1280);
    await looks(page, `${name}-narrow`, 'light', 390);
    await looks(page, `${name}-narrow-dark`, 'dark', 390);
  };
  const verdict = () => page.locator('#verdict').innerText();
  const isLive = () => until(page, () => document.getElementById('link').textContent === 'Live');
  const isLost = (why) => until(page, (why) => new RegExp(`^Not connected \\(${why}\\); the data below is old$`).test(document.getElementById('link').textContent), why);
  const orders = () => page.locator('#lanes .orders button').evaluateAll((buttons) => buttons.map((button) => button.disabled));

  // Only Flowgate or the network is blamed, the rest is grey, and no action is offered.
  async function blamesFlowgate() {
    assert.match(await verdict(), /^Look at Flowgate, or at the network to it: no data since \d\d:\d\d:\d\d\.$/);
    assert.match(await page.locator('#health-flowgate.bad').innerText(), /^Flowgate\s+No data\s+since \d\d:\d\d:\d\d: \w/);
    assert.equal(await page.title(), '(no data) Flowgate');
    const colours = await page.evaluate(() => ['#health-flowgate .state', '#verdict', '#health-cams .state', '#troubles a', '#lanes td', '#health-cams .facts'].map((one) => getComputedStyle(document.querySelector(one)).color));
    const [flowgate, heading, ...others] = colours;
    assert.deepEqual([flowgate === heading, new Set(others).size, others.includes(flowgate)], [true, 1, false], colours.join('; '));
    assert.deepEqual(await orders(), [true, true, true, true]);
  }

  await step('while CAMS is unreachable, the wait for a new call is unknown, in the lanes of these accounts', async () => {
    await page.goto(`${gate.admin}/`);
    queueCalls(gate.proxy, 20, 'acme');
    queueCalls(gate.proxy, 300, 'partner');
    await until(page, () => document.querySelectorAll('#lanes > tbody > tr:not(.tenants)').length === 2);
    await until(page, () => document.getElementById('health-cams').textContent.includes('UpstreamUnreachable'));
    const waits = await column(page, 'Wait for a new call').allInnerTexts();
    assert.equal(waits[0], 'unknown');
    assert.match(waits[1], /^\d/);
    assert.match(await page.locator('#troubles').innerText(), /nothing is sent; how long a new call waits is unknown/);
    assert.equal(await verdict(), 'Look at CAMS.');
    await schemes('unreachable');
    await page.setViewportSize({ width: 390, height: 900 });
    assert.deepEqual(await cutWords(page, '#health .state'), []);
  });

  await step('a Flowgate that hangs is reported within seconds, and all comes back when it continues', async () => {
    await page.getByRole('button', { name: 'Flush acme / CreateFlow', exact: true }).click();
    assert.equal(await page.locator('#ask-do').isEnabled(), true);
    gate.child.kill('SIGSTOP');
    await isLost('no data for 5 s');
    // It would perform the action when it continues.
    assert.equal(await page.locator('#ask-do').isEnabled(), false);
    await page.keyboard.press('Escape');
    await blamesFlowgate();
    await schemes('hangs');
    await blamesFlowgate();
    gate.child.kill('SIGCONT');
    await isLive();
    assert.equal(await verdict(), 'Look at CAMS.');
    assert.deepEqual([await page.locator('#health-flowgate .state').innerText(), await orders()], ['No problem', [false, false, false, false]]);
    assert.deepEqual(noted, { errors: [], foreign: [] });
  });

  await step('a Flowgate that was killed is reported, and CAMS is not blamed', async () => {
    gate.child.kill('SIGKILL');
    await isLost('Failed to fetch');
    await blamesFlowgate();
    await schemes('killed');
  });
  await context.close();
}

mkdirSync(SCREENSHOTS, { recursive: true });
let browser;
try {
  const sim = await simulator();
  const gate = await flowgate(sim.url);
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS });
  await all(browser, sim, gate);
  await silence(browser, sim);
} catch (error) {
  failed += 1;
  console.log(`FAILED  ${error.stack}`);
} finally {
  await browser?.close();
  for (const child of children) child.kill('SIGKILL');
  rmSync(folder, { recursive: true });
}
console.log(`page: ${failed ? `${failed} failed` : 'all passed'}`);
process.exitCode = failed ? 1 : 0;
