'use strict';

/* The page of several runs: one view, and charts in which every run keeps its colour. */
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const byId = (id) => document.getElementById(id);
  const { runs, names, truth } = data;
  const charts = [];
  let view = null;
  let chosen = 0;

  function choose(id) {
    chosen = Math.min(Math.max(id, 0), names.length - 1);
    for (const one of charts) one.select(chosen);
    if (!view) return;
    byId('slider').value = String(chosen);
    byId('name').textContent = names[chosen];
    byId('facts').replaceChildren(...runs.map((run) => element('tr', {},
      element('td', {}, element('i', { class: `key dot c${run.css}` }), ` ${run.name}`),
      element('td', {}, ...answer(run)))));
    const places = runs.map((run) => ({ run, at: run.estimate[chosen] })).filter(({ at }) => at);
    view.set('chosen', [
      {
        lines: truth[chosen] ? places.map(({ at }) => [truth[chosen], at]) : [],
        colours: places.map(({ run }) => `--c${run.css}`), size: 2,
      },
      { dots: places.map(({ at }) => at), colours: places.map(({ run }) => `--c${run.css}`), size: 7 },
      { dots: truth[chosen] ? [truth[chosen]] : [], colour: '--ink', size: 6 },
    ]);
  }

  function answer(run) {
    const status = run.status[chosen];
    if (status === null) return ['not in this run'];
    const error = run.error[chosen];
    return [
      element('span', { class: `status ${status}` }, status),
      error ? ` ${metres(error[0])}, ${degrees(error[1])}` : '',
    ];
  }

  function drawView() {
    view = new View3D(byId('view'), data.view, choose);
    view.set('truth', [{
      lines: data.steps.map(([i, k]) => [truth[i], truth[k]]), colour: '--ink', size: 2,
    }]);
    for (const [i, run] of runs.entries()) {
      const ids = run.estimate.map((at, id) => id).filter((id) => run.estimate[id]);
      view.set(`run ${i}`, [
        { dots: ids.map((id) => run.estimate[id]), colour: `--c${run.css}`, size: 3.5, ids },
      ]);
    }
    view.fit([...truth, ...runs.flatMap((run) => run.estimate)].filter(Boolean));
    byId('above').onclick = () => view.above();
    byId('reset').onclick = () => view.reset();
    byId('keys').append(
      element('span', {}, element('i', { class: 'key ink' }), 'true path'),
      ...runs.map((run) => element('span', {}, element('i', { class: `key dot c${run.css}` }), run.name)),
    );
    byId('slider').max = String(names.length - 1);
    byId('slider').oninput = () => choose(Number(byId('slider').value));
    byId('before').onclick = () => choose(chosen - 1);
    byId('after').onclick = () => choose(chosen + 1);
  }

  function drawErrors() {
    ['position', 'rotation'].forEach((id, k) => {
      const all = runs.flatMap((run) => run.error.filter(Boolean).map((error) => error[k]));
      const log = spansMuch(all);
      charts.push(chart(byId(id), {
        x: { label: 'frame', min: 0, max: Math.max(names.length - 1, 1) },
        y: { label: ['position error, m', 'rotation error, deg'][k], log, min: log ? undefined : 0 },
        height: 240,
        series: runs.flatMap((run) => {
          const ids = run.error.map((_, i) => i).filter((i) => run.error[i]);
          const y = ids.map((i) => run.error[i][k]);
          return [
            { name: run.name, kind: 'line', css: run.css, thin: true, x: ids, y },
            { kind: 'dots', css: run.css, x: ids, y, ids },
          ];
        }),
        onPick: choose,
      }));
    });
    const curves = runs.map(({ name, css, errors }) => ({ name, css, errors }));
    cumulativeCharts([byId('cumulative-position'), byId('cumulative-rotation')], curves);
  }

  if (data.view) drawView();
  if (byId('position')) drawErrors();
  const honest = runs.filter((run) => run.levels.length);
  if (byId('calibration')) calibrationChart(byId('calibration'), honest);
  choose(0);
})();
