'use strict';

/** Elements without innerHTML: text from files is only ever text. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'class') node.className = value;
    else if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Such as '3.2 cm': metres for people. */
function metres(value) {
  if (value < 0.01) return `${(1000 * value).toFixed(1)} mm`;
  if (value < 0.1) return `${(100 * value).toFixed(1)} cm`;
  if (value < 1) return `${(100 * value).toFixed(0)} cm`;
  return `${value.toFixed(2)} m`;
}

function degrees(value) {
  return `${value.toFixed(value < 1 ? 2 : 1)}°`;
}

function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b);
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** A logarithmic axis where the values span much, so that the small ones can still be told apart. */
function spansMuch(values) {
  const positive = values.filter((value) => value > 0);
  return positive.length > 3 && Math.max(...positive) > 20 * quantile(positive, 0.25);
}

/**
 * A chart as SVG that is drawn anew when its box changes its width, so that text keeps its size.
 *
 * @param {HTMLElement} box
 * @param {object} spec
 *   x, y: {label, min, max, log}; what is missing follows from the series.
 *   series: [{name, x, y, kind: 'line' | 'step' | 'dots' | 'bars' | 'band', css, dash, ids, top}];
 *     `css` numbers a colour of the style sheet; a band lies between `y` and `top`; bars have one
 *     more x than y.
 *   marks: {x, ids, name}: ticks along the bottom, for frames without an answer.
 *   rules: [{y, name}]: horizontal lines.
 *   onPick(id): a dot or mark was clicked.
 *   height: pixels.
 * @returns {{select: (id: number) => void}}
 */
function chart(box, spec) {
  const state = { selected: null };
  const drawing = element('div');
  box.replaceChildren(drawing, legend(spec));
  const redraw = () => {
    const width = drawing.clientWidth;
    if (width > 0) drawing.replaceChildren(chartSvg(width, spec, state));
  };
  let last = 0;
  new ResizeObserver(() => {
    if (drawing.clientWidth !== last) redraw();
    last = drawing.clientWidth;
  }).observe(drawing);
  redraw();
  return {
    select(id) {
      state.selected = id;
      redraw();
    },
  };
}

function legend(spec) {
  const named = [
    ...spec.series.filter((s) => s.name).map((s) => [s.name, `key c${s.css}${s.dash ? ' dash' : ''}`]),
    ...(spec.rules || []).map((rule) => [rule.name, 'key rule']),
    ...(spec.marks?.x.length ? [[spec.marks.name, 'key mark']] : []),
  ];
  const entries = named.map(([name, css]) =>
    element('span', {}, element('i', { class: css }), name));
  return element('div', { class: 'legend' }, ...(named.length > 1 ? entries : []));
}

function chartSvg(width, spec, state) {
  const height = spec.height ?? 260;
  const area = { left: 46, right: width - 12, top: 28, bottom: height - 40 };
  const x = scale(spec.x, spec.series.flatMap((s) => s.x), area.left, area.right);
  const y = scale(spec.y, spec.series.flatMap((s) => [...s.y, ...(s.top ?? [])]), area.bottom, area.top);
  const root = svg('svg', {
    width, height, viewBox: `0 0 ${width} ${height}`, role: 'img',
    'aria-label': `${spec.y.label} over ${spec.x.label}`,
  });
  for (const tick of y.ticks(Math.max(3, height / 40))) {
    root.append(
      svg('line', { class: 'grid', x1: area.left, x2: area.right, y1: y.at(tick), y2: y.at(tick) }),
      svg('text', { class: 'tick', x: area.left - 6, y: y.at(tick) + 4, 'text-anchor': 'end' }, short(tick)),
    );
  }
  for (const tick of x.ticks(Math.max(3, width / 80))) {
    root.append(
      svg('line', { class: 'grid', x1: x.at(tick), x2: x.at(tick), y1: area.top, y2: area.bottom }),
      svg('text', { class: 'tick', x: x.at(tick), y: area.bottom + 16, 'text-anchor': 'middle' }, short(tick)),
    );
  }
  root.append(
    svg('text', { class: 'tick', x: area.right, y: height - 6, 'text-anchor': 'end' }, spec.x.label),
    svg('text', { class: 'tick', x: 2, y: 14 }, spec.y.label),
  );
  for (const rule of spec.rules ?? []) {
    root.append(svg('line', { class: 'rule', x1: area.left, x2: area.right, y1: y.at(rule.y), y2: y.at(rule.y) }));
  }
  for (const series of spec.series) root.append(...drawn(series, x, y, area));
  root.append(...targets(spec, x, y, area, state));
  return root;
}

function drawn(series, x, y, area) {
  const points = series.x.map((value, i) => [x.at(value), y.at(series.y[i])]);
  const path = (list) => list.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(' L');
  const css = `c${series.css}${series.dash ? ' dash' : ''}${series.thin ? ' thin' : ''}`;
  if (series.kind === 'bars') {
    return series.y.map((count, i) => {
      const [from, to] = [x.at(series.x[i]), x.at(series.x[i + 1])];
      return svg('rect', {
        class: css, x: from + 0.5, width: Math.max(to - from - 1, 1), y: y.at(count),
        height: area.bottom - y.at(count),
      });
    });
  }
  if (series.kind === 'band') {
    const back = series.x.map((value, i) => [x.at(value), y.at(series.top[i])]).reverse();
    return [svg('path', { class: `${css} band`, d: `M${path([...points, ...back])}Z` })];
  }
  if (series.kind === 'dots' || !points.length) return [];
  if (series.kind === 'step') {
    const stairs = points.flatMap((p, i) => (i ? [[p[0], points[i - 1][1]], p] : [p]));
    return [svg('path', { class: css, d: `M${path(stairs)}` })];
  }
  return [svg('path', { class: css, d: `M${path(points)}` })];
}

/** What can be clicked: dots and marks; the selected one is drawn larger and last. */
function targets(spec, x, y, area, state) {
  const nodes = [];
  const add = (node, id) => {
    if (id === undefined) return nodes.push(node);
    node.classList.add('pick');
    node.addEventListener('click', () => spec.onPick?.(id));
    if (id === state.selected) node.classList.add('selected');
    return nodes.push(node);
  };
  for (const series of spec.series.filter((s) => s.kind === 'dots')) {
    series.x.forEach((value, i) => {
      const id = series.ids?.[i];
      const r = id === state.selected ? 6 : 3;
      add(svg('circle', { class: `c${series.css}`, cx: x.at(value), cy: y.at(series.y[i]), r }), id);
    });
  }
  (spec.marks?.x ?? []).forEach((value, i) => {
    const id = spec.marks.ids[i];
    add(svg('rect', {
      class: 'mark', x: x.at(value) - (id === state.selected ? 3 : 1.5), y: area.bottom - 12,
      width: id === state.selected ? 6 : 3, height: 12,
    }), id);
  });
  return nodes.sort((a, b) => a.classList.contains('selected') - b.classList.contains('selected'));
}

/** The way from values to pixels, and where its ticks are. */
function scale(axis, values, from, to) {
  const known = values.filter((value) => Number.isFinite(value) && (!axis.log || value > 0));
  let low = axis.min ?? (known.length ? Math.min(...known) : 0);
  let high = axis.max ?? (known.length ? Math.max(...known) : 1);
  if (axis.log) {
    [low, high] = [Math.max(low, 1e-9), Math.max(high, 1e-9)];
    if (high < 1.2 * low) [low, high] = [low / 1.5, high * 1.5];
  } else if (high <= low) high = low + 1;
  const shape = axis.log ? Math.log10 : (value) => value;
  const [a, b] = [shape(low), shape(high)];
  return {
    at: (value) => from + ((shape(Math.min(Math.max(value, low), high)) - a) / (b - a)) * (to - from),
    ticks: (count) => (axis.log ? logTicks(low, high, count) : linearTicks(low, high, count)),
  };
}

function linearTicks(low, high, count) {
  const step = niceStep((high - low) / count);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low, high, count) {
  const between = (factors) => {
    const ticks = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++) {
      for (const f of factors) ticks.push(Number((f * 10 ** p).toPrecision(3)));
    }
    return ticks.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  };
  return [[1, 2, 5], [1, 3], [1]].map(between).find((t) => t.length <= count) ?? between([1]);
}

function short(value) {
  return Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3)
    ? value.toExponential(0)
    : String(Number(value.toPrecision(4)));
}

/** Cumulative curve as steps: the share of all frames within each error; null is no answer. */
function cumulative(errors, low, high) {
  const known = errors.filter((e) => e !== null).map((e) => Math.max(e, low)).sort((a, b) => a - b);
  const share = (k) => (100 * k) / Math.max(errors.length, 1);
  return {
    x: [low, ...known, high],
    y: [0, ...known.map((_, i) => share(i + 1)), share(known.length)],
  };
}

/** Two charts, position and rotation, of cumulative errors: [{name, errors: [m[], deg[]], css, dash}]. */
function cumulativeCharts(boxes, curves) {
  const names = ['position error, m', 'rotation error, deg'];
  boxes.forEach((box, k) => {
    // A logarithmic axis has no zero: below these an error is drawn as that.
    const least = [1e-3, 1e-2][k];
    const known = curves.flatMap((c) => c.errors[k]).filter((e) => e !== null);
    const low = Math.max(Math.min(...known), least);
    const high = Math.max(...known, 2 * low);
    chart(box, {
      x: { label: names[k], log: true, min: low, max: high },
      y: { label: '% of frames within', min: 0, max: 100 },
      series: curves.map((c) => ({ ...c, ...cumulative(c.errors[k], low, high), kind: 'step' })),
    });
  });
}

/**
 * Share of frames inside the confidence ellipsoid of each level.
 *
 * The band is what honest covariances of as many frames would stay in with 95 % probability
 * (Kolmogorov and Smirnov; Massart's bound).
 *
 * @param {{name: string, levels: number[], css: number}[]} curves levels in %, one for each frame:
 *   that of the smallest ellipsoid that holds its error.
 */
function calibrationChart(box, curves) {
  const least = Math.min(...curves.map((c) => c.levels.length));
  const width = 100 * Math.sqrt(Math.log(2 / 0.05) / (2 * least));
  const grid = Array.from({ length: 51 }, (_, i) => 2 * i);
  chart(box, {
    x: { label: 'confidence level, %', min: 0, max: 100 },
    y: { label: '% of frames inside', min: 0, max: 100 },
    series: [
      {
        name: 'honest', kind: 'band', css: 'soft', x: grid,
        y: grid.map((v) => Math.max(v - width, 0)), top: grid.map((v) => Math.min(v + width, 100)),
      },
      { kind: 'line', css: 'soft', dash: true, x: [0, 100], y: [0, 100] },
      ...curves.map(({ name, levels, css }) => {
        const sorted = [...levels].sort((a, b) => a - b);
        return {
          name, css, kind: 'step',
          x: [0, ...sorted, 100],
          y: [0, ...sorted.map((_, i) => (100 * (i + 1)) / sorted.length), 100],
        };
      }),
    ],
  });
}

function histogram(box, values, label) {
  const high = quantile(values, 0.99) * 1.05;
  const step = niceStep(high / 24);
  const count = Math.ceil(high / step);
  const bins = Array(count).fill(0);
  for (const value of values) bins[Math.min(Math.floor(value / step), count - 1)] += 1;
  chart(box, {
    x: { label, min: 0, max: count * step },
    y: { label: 'frames', min: 0 },
    series: [{ kind: 'bars', css: 0, x: Array.from({ length: count + 1 }, (_, i) => i * step), y: bins }],
  });
}

/** Colour of an error between 0 and 1, from blue to orange: readable on light and on dark. */
function errorColour(share) {
  const stops = [[47, 116, 208], [138, 86, 190], [214, 72, 126], [240, 138, 40]];
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  const mixed = stops[i].map((value, k) => Math.round(value + (at - i) * (stops[i + 1][k] - value)));
  return `rgb(${mixed.join(',')})`;
}
