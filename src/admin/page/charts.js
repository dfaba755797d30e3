// Charts of the last 15 minutes, from /history: one value per interval, the newest at the right; null in a gap.

import { make, makeSvg, put, rate } from './common.js';

// Intervals in a chart, and its height; the page stretches both.
const SLOTS = 180;
const HEIGHT = 100;
const MINUTES = 15;

// A chart with its caption. `fill(points)` draws it.
export function newChart(title, unit) {
  const [now, top, read] = [make('strong'), make('span', { classes: 'top' }), make('span', { classes: 'read' })];
  const svg = makeSvg('svg', { class: 'chart', viewBox: `0 0 ${SLOTS} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img' });
  const axis = make('p', { classes: 'axis', 'aria-hidden': 'true' }, make('span', { text: '15 min ago' }), make('span', { text: '10' }), make('span', { text: '5' }), make('span', { text: 'now', classes: 'now' }));
  const figure = make('figure', {}, make('figcaption', {}, make('span', { text: title }), ' ', now, read), make('div', { classes: 'plot' }, top, svg), axis);
  const chart = { title, unit, figure, svg, now, top, read, points: {} };
  svg.addEventListener('pointermove', (event) => readAt(chart, event));
  svg.addEventListener('pointerleave', () => put(read, ''));
  return chart;
}

// `values` and `limits` are lines; `throttled` has counts, `paused` is truthy where the lane was paused.
export function drawChart(chart, points) {
  chart.points = points;
  const { values, limits = [], throttled, paused } = points;
  const known = values.filter((value) => value !== null);
  const top = niceTop(Math.max(...known, ...limits.filter((limit) => limit !== null), 0));
  const first = SLOTS - values.length;
  const y = (value) => HEIGHT - (value / top) * (HEIGHT - 6);
  const bands = (list, name, from) => runs(list).map(([start, end]) => makeSvg('rect', { class: name, x: first + start, y: from, width: end - start, height: HEIGHT - from }));
  chart.svg.replaceChildren(
    ...bands(values.map((value) => value === null), 'gap', 0),
    ...bands(paused, 'paused', 0),
    ...lines(values, first, y).flatMap((points) => [
      makeSvg('polygon', { class: 'area', points: `${points[0][0]},${HEIGHT} ${join(points)} ${points.at(-1)[0]},${HEIGHT}` }),
      makeSvg('polyline', { class: 'line', points: join(points) }),
    ]),
    ...lines(limits.map((limit) => limit || null), first, y).map((points) => makeSvg('polyline', { class: 'limit', points: join(points) })),
    ...bands(throttled, 'throttled', HEIGHT - 14),
  );
  const latest = known.at(-1) ?? 0;
  put(chart.now, `${rate(latest)}${chart.unit}`);
  put(chart.top, rate(top));
  const events = [[throttled.filter(Boolean).length, 'with throttled attempts'], [paused.filter(Boolean).length, 'with a pause']];
  const marks = events.filter(([count]) => count).map(([count, what]) => `, ${count} ${count === 1 ? 'interval' : 'intervals'} of 5 seconds ${what}`).join('');
  chart.svg.setAttribute('aria-label', `${chart.title} over 15 minutes: now ${rate(latest)}${chart.unit}, highest ${rate(Math.max(...known, 0))}${chart.unit}${marks}`);
}

// The runs of true values, as [start, end).
function runs(list) {
  const found = [];
  list.forEach((value, index) => {
    if (!value) return;
    if (found.at(-1)?.[1] === index) found.at(-1)[1] = index + 1;
    else found.push([index, index + 1]);
  });
  return found;
}

// Unbroken runs of values, each a list of points. A single value is as wide as its interval.
function lines(values, first, y) {
  return runs(values.map((value) => value !== null)).map(([start, end]) => {
    const points = values.slice(start, end).map((value, index) => [first + start + index + 1, y(value)]);
    return [[first + start, points[0][1]], ...points];
  });
}

const join = (points) => points.map(([x, y]) => `${x},${y.toFixed(2)}`).join(' ');

// A round number that is not below `value`.
function niceTop(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 5, 7.5, 10].map((step) => step * power).find((step) => step >= value);
}

function readAt({ svg, points, read, unit }, event) {
  const { left, width } = svg.getBoundingClientRect();
  const slot = Math.floor(((event.clientX - left) / width) * SLOTS);
  const index = slot - (SLOTS - points.values.length);
  const value = points.values[index];
  const ago = `${((SLOTS - slot) * 5 / 60).toFixed(1)} min ago`;
  const more = `${points.throttled[index] ? `, ${points.throttled[index]} throttled` : ''}${points.paused[index] ? ', paused' : ''}`;
  put(read, index < 0 || value === undefined ? `${ago}: not recorded` : value === null ? `${ago}: no sample` : `${ago}: ${rate(value)}${unit}${more}`);
}

// One row per minute, the newest first: for screen readers, and to copy.
export function minuteRows(columns) {
  const length = columns[0].values.length;
  const minutes = Math.min(MINUTES, Math.ceil(length / 12));
  return Array.from({ length: minutes }, (_, minute) => {
    const part = (values) => values.slice(Math.max(0, length - 12 * (minute + 1)), length - 12 * minute).filter((value) => value !== null);
    return [minute === 0 ? 'last minute' : `${minute} min ago`, ...columns.map(({ values, merge }) => {
      const known = part(values);
      return known.length ? rate(merge(known)) : 'no sample';
    })];
  });
}
