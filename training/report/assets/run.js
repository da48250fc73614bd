'use strict';

/* The page of one run: a 3D view, the chosen frame beside it, and the charts under them. */
(() => {
  const run = JSON.parse(document.getElementById('data').textContent);
  const byId = (id) => document.getElementById(id);
  const { frames } = run;
  if (!frames.length) return;
  const scored = frames.map((frame, id) => ({ ...frame, id })).filter((f) => f.error);
  const centre = (pose) => [pose[3], pose[7], pose[11]];
  const limit = scored.length ? Math.max(quantile(scored.map((f) => f.error[0]), 0.95), 1e-3) : 1;
  const choosers = [];
  let view = null;
  let chosen = null;

  /** The one way to choose a frame: from the view, a chart, the slider or a card. */
  function choose(id) {
    chosen = Math.min(Math.max(id, 0), frames.length - 1);
    byId('slider').value = String(chosen);
    showFrame(frames[chosen]);
    drawChosen(frames[chosen]);
    for (const select of choosers) select(chosen);
  }

  function showFrame(frame) {
    const picture = frame.image
      ? element('img', { src: frame.image, alt: frame.name })
      : element('div', { class: 'blank' }, 'no picture kept');
    byId('picture').replaceChildren(picture);
    byId('name').textContent = frame.name;
    byId('facts').replaceChildren(...facts(frame).map(([name, value]) =>
      element('tr', {}, element('td', {}, name), element('td', {}, value))));
  }

  function facts(frame) {
    const rows = [['answer', element('span', { class: `status ${frame.status}` }, frame.status)]];
    if (frame.error) rows.push(['error', `${metres(frame.error[0])}, ${degrees(frame.error[1])}`]);
    if (frame.sigma) rows.push(['claimed sigma', `${metres(frame.sigma[0])}, ${degrees(frame.sigma[1])}`]);
    if (frame.level !== null) rows.push(['error lies', honesty(frame.level)]);
    if (frame.reasons.length) rows.push(['because', frame.reasons.join('; ')]);
    if (frame.latency !== null) rows.push(['latency', `${frame.latency.toFixed(0)} ms`]);
    return rows;
  }

  function honesty(level) {
    if (level > 99.9) return 'outside the 99.9 % ellipsoid: it claimed too much';
    return `inside the ${Math.max(level, 1).toFixed(level > 99 ? 1 : 0)} % ellipsoid`;
  }

  function drawChosen(frame) {
    if (!view) return;
    const reach = 0.12 * run.extent;
    const items = [];
    if (frame.truth) items.push({ lines: View3D.frustum(frame.truth, reach), colour: '--ink', size: 1.5 });
    if (frame.estimate) {
      items.push({ lines: View3D.frustum(frame.estimate, reach), colour: '--blue', size: 2 });
    }
    if (frame.estimate && frame.ellipsoid) {
      items.push({
        lines: View3D.ellipsoid(centre(frame.estimate), frame.ellipsoid),
        colour: '--blue', size: 1, alpha: 0.6,
      });
    }
    view.set('chosen', items);
  }

  function drawView() {
    view = new View3D(byId('view'), run.view, choose);
    const { train, truth } = run;
    const answered = frames.map((f, id) => ({ ...f, id })).filter((f) => f.estimate);
    const silent = frames.map((f, id) => ({ ...f, id })).filter((f) => f.truth && !f.estimate);
    const colours = answered.map((f) => (f.error ? errorColour(f.error[0] / limit) : '--blue'));
    view.set('landmarks', [{ points: run.landmarks, colour: '--soft', size: 1.8, alpha: 0.6 }]);
    view.set('train', [
      { lines: train.steps.map((i) => [train.positions[i], train.positions[i + 1]]), colour: '--path', size: 1.5 },
      { points: train.positions, colour: '--path', size: 3 },
    ]);
    view.set('truth', [{
      lines: truth.map(([i, k]) => [centre(frames[i].truth), centre(frames[k].truth)]),
      colour: '--ink', size: 2,
    }]);
    const joined = answered.filter((f) => f.truth);
    view.set('joins', [{
      lines: joined.map((f) => [centre(f.truth), centre(f.estimate)]),
      colours: joined.map((f) => (f.error ? errorColour(f.error[0] / limit) : '--blue')), size: 1.2, alpha: 0.7,
    }]);
    view.set('dots', [
      { dots: silent.map((f) => centre(f.truth)), colour: '--bad', size: 3, ids: silent.map((f) => f.id) },
      { dots: answered.map((f) => centre(f.estimate)), colours, size: 4, ids: answered.map((f) => f.id) },
    ]);
    const places = frames.flatMap((f) => [f.truth, f.estimate]).filter(Boolean).map(centre);
    view.fit([...train.positions, ...places], run.landmarks);
    byId('above').onclick = () => view.above();
    byId('reset').onclick = () => view.reset();
    byId('worst-error').textContent = `${metres(limit)} and more`;
  }

  /** Errors of every frame over time or along the path; two charts that share what is chosen. */
  function drawErrors(over) {
    const boxes = [byId('position'), byId('rotation')];
    const axis = over === 'time' ? 'seconds' : 'metres along the true path';
    const silent = frames.map((f, id) => ({ ...f, id })).filter((f) => f.truth && !f.estimate);
    const charts = boxes.map((box, k) => {
      const [x, y] = [scored.map((f) => f[over]), scored.map((f) => f.error[k])];
      const order = x.map((_, i) => i).sort((a, b) => x[a] - x[b]);
      const [sx, sy] = [order.map((i) => x[i]), order.map((i) => y[i])];
      const log = spansMuch(y);
      const middle = quantile(y, 0.5);
      return chart(box, {
        x: { label: axis },
        y: { label: ['position error, m', 'rotation error, deg'][k], log, min: log ? undefined : 0 },
        height: 220,
        series: [
          { kind: 'line', css: k, thin: true, x: sx, y: sy },
          { kind: 'dots', css: k, x, y, ids: scored.map((f) => f.id) },
        ],
        rules: [{ y: middle, name: `median ${[metres, degrees][k](middle)}` }],
        marks: { x: silent.map((f) => f[over]), ids: silent.map((f) => f.id), name: 'no answer' },
        onPick: choose,
      });
    });
    choosers[0] = (id) => charts.forEach((c) => c.select(id));
    if (chosen !== null) choosers[0](chosen);
  }

  /** A card for a frame; a click shows it in the view. */
  function card(frame) {
    const text = frame.error
      ? `${metres(frame.error[0])}, ${degrees(frame.error[1])}`
      : frame.status;
    const why = [
      ...frame.reasons,
      ...(frame.level !== null ? [`error ${honesty(frame.level)}`] : []),
    ].join('; ');
    const picture = frame.image
      ? element('img', { src: frame.image, alt: '' })
      : element('div', { class: 'blank' }, 'no picture kept');
    return element(
      'button',
      { class: 'frame', onclick: () => { choose(frame.id); byId('map').scrollIntoView({ behavior: 'smooth' }); } },
      picture,
      element('b', {}, text),
      element('span', { class: `status ${frame.status}` }, frame.status),
      element('span', { class: 'file' }, frame.name),
      element('span', {}, why),
    );
  }

  function drawCards() {
    for (const name of ['worst', 'silent']) {
      const cards = run[name].map((id) => card({ ...frames[id], id }));
      byId(name)?.replaceChildren(...cards);
    }
  }

  function drawCharts() {
    if (scored.length) {
      drawErrors('time');
      for (const input of document.querySelectorAll('input[name="over"]')) {
        input.onchange = () => drawErrors(input.value);
      }
      cumulativeCharts(
        [byId('cumulative-position'), byId('cumulative-rotation')],
        run.curves,
      );
    }
    if (byId('calibration')) {
      const known = scored.filter((f) => f.level !== null);
      const statuses = [...new Set(known.map((f) => f.status))];
      const curves = [{ name: 'all answers', css: 0, levels: known.map((f) => f.level) }];
      if (statuses.length > 1) {
        statuses.forEach((status, i) => curves.push({
          name: status, css: i + 1,
          levels: known.filter((f) => f.status === status).map((f) => f.level),
        }));
      }
      calibrationChart(byId('calibration'), curves);
    }
    const latencies = frames.map((f) => f.latency).filter((value) => value !== null);
    if (byId('latency') && latencies.length) histogram(byId('latency'), latencies, 'latency, ms');
  }

  drawView();
  drawCharts();
  drawCards();
  const slider = byId('slider');
  slider.max = String(frames.length - 1);
  slider.oninput = () => choose(Number(slider.value));
  byId('before').onclick = () => choose(chosen - 1);
  byId('after').onclick = () => choose(chosen + 1);
  const first = scored.length ? scored.reduce((a, b) => (b.error[0] > a.error[0] ? b : a)).id : 0;
  choose(first);
})();
