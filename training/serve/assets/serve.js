'use strict';

/* The page of `pose_reloc serve`: a picture goes to the server, its pose comes back. */
(async () => {
  const byId = (id) => document.getElementById(id);
  const trail = [];
  const centre = (pose) => [pose[3], pose[7], pose[11]];
  let views = [];
  let extent = 1;
  let stream = null;
  let newest = 0;

  const scene = await (await fetch('/scene.json')).json();
  show(scene);

  function show({ name, recipe, train, landmarks, view, extent: size }) {
    extent = size;
    const about = [recipe.dataset && `trained on ${recipe.dataset}`, recipe.images, recipe.landmarks
      && `landmarks: ${recipe.landmarks}`].filter(Boolean);
    byId('scene').textContent = `Scene ${name}: ${about.join('; ')}.`;
    views = ['view', 'top'].map((id) => new View3D(byId(id), view));
    for (const one of views) {
      one.set('landmarks', [{ points: landmarks, colour: '--soft', size: 1.8, alpha: 0.6 }]);
      one.set('train', [
        { lines: train.steps.map((i) => [train.positions[i], train.positions[i + 1]]), colour: '--path', size: 1.5 },
        { points: train.positions, colour: '--path', size: 3 },
      ]);
      one.fit(train.positions, landmarks);
    }
    views[1].above();
    byId('reset').onclick = () => views[0].reset();
  }

  /** Sends one picture; an answer that a newer picture has overtaken is not shown. */
  async function localize(blob, url) {
    const number = ++newest;
    byId('verdict').className = 'verdict';
    if (!stream) byId('verdict').textContent = 'looking';
    const query = new URLSearchParams();
    for (const name of ['fx', 'fov']) if (byId(name).value) query.set(name, byId(name).value);
    let result;
    try {
      const response = await fetch(`/localize?${query}`, {
        method: 'POST', body: blob, headers: { 'Content-Type': blob.type || 'application/octet-stream' },
      });
      result = await response.json();
    } catch {
      result = { error: 'the server does not answer' };
    }
    if (number === newest) showAnswer(result, url);
  }

  function showAnswer(answer, url) {
    showPicture(answer, url);
    byId('verdict').textContent = answer.error ? 'no answer' : answer.status;
    byId('verdict').className = `verdict status ${answer.status ?? 'LOST'}`;
    byId('words').textContent = words(answer);
    byId('facts').replaceChildren(...facts(answer).map(([name, value]) =>
      element('tr', {}, element('td', {}, name), element('td', {}, value))));
    drawAnswer(answer);
    showKeyframe(answer, url);
  }

  function words(answer) {
    if (answer.error) return answer.error;
    if (answer.status === 'REFINED') return 'Computed from landmarks that were found in the picture.';
    if (answer.status === 'COARSE') return 'What the network alone says: the landmarks did not confirm it.';
    return `Refused: ${answer.reasons.join('; ')}.`;
  }

  function facts(answer) {
    if (answer.error) return [];
    const rows = [];
    if (answer.pose) {
      rows.push(['position', `x ${answer.pose[3].toFixed(3)}, y ${answer.pose[7].toFixed(3)}, z ${answer.pose[11].toFixed(3)} m`]);
      rows.push(['sigma', `${metres(answer.sigma[0])}, ${degrees(answer.sigma[1])}`]);
      rows.push(['landmarks', String(answer.landmarks)]);
    }
    if (answer.reasons.length) rows.push(['because', answer.reasons.join('; ')]);
    if (answer.likeness !== null) rows.push(['likeness to a keyframe', answer.likeness.toFixed(2)]);
    rows.push(['camera', answer.camera], ['time', `${answer.time_ms.toFixed(0)} ms`]);
    return rows;
  }

  function showPicture(answer, url) {
    const points = (answer.matches ?? []).map(([u, v]) => circle(u, v, answer.size, 'found'));
    const image = element('img', { src: url, alt: 'your picture' });
    image.onerror = () => image.replaceWith(element('div', { class: 'blank' }, 'no picture'));
    byId('shown').replaceChildren(image, ...overlay(answer.size, points));
  }

  function overlay(size, nodes) {
    if (!size) return [];
    return [svg('svg', { viewBox: `0 0 ${size[0]} ${size[1]}`, preserveAspectRatio: 'none' }, ...nodes)];
  }

  function circle(u, v, size, css, fill) {
    const node = svg('circle', { class: css, cx: u + 0.5, cy: v + 0.5, r: size[0] / 130 });
    if (fill) node.style.fill = fill;
    return node;
  }

  /** The same landmarks in both pictures, in the same colours. */
  function showKeyframe({ keyframe, size }, url) {
    byId('keyframe').hidden = !keyframe;
    if (!keyframe) return;
    const matched = keyframe.seen.length
      ? `${keyframe.seen.length} of its landmarks were found in the picture (same colours)`
      : 'it should look most alike from there';
    const missing = keyframe.picture ? '' : '; start with --images to see it';
    byId('keyframe-name').textContent = `Keyframe ${keyframe.number}, ${keyframe.name}: ${matched}${missing}.`;
    const hue = ([u]) => `hsl(${Math.round((330 * u) / keyframe.size[0])} 90% 60%)`;
    const dots = (places, of) => places.map(([u, v], i) => circle(u, v, of, 'pairdot', hue(keyframe.seen[i])));
    byId('here').replaceChildren(
      element('img', { src: url, alt: 'your picture' }), ...overlay(size, dots(keyframe.here, size)));
    byId('there').replaceChildren(
      keyframe.picture
        ? element('img', { src: `/keyframe/${keyframe.number}.jpg`, alt: keyframe.name })
        : element('div', { class: 'blank' }, 'its picture is not here'),
      ...overlay(keyframe.size, dots(keyframe.seen, keyframe.size)));
  }

  function drawAnswer(answer) {
    const reach = 0.12 * extent;
    const items = [{ dots: trail.slice(-60), colour: '--c0', size: 3, alpha: 0.5 }];
    if (answer.keyframe) {
      items.push({ lines: View3D.frustum(answer.keyframe.pose, reach), colour: '--c1', size: 1.5 });
    }
    if (answer.pose) {
      const place = centre(answer.pose);
      trail.push(place);
      items.push(
        { lines: View3D.ellipsoid(place, answer.ellipsoid), colour: '--c0', size: 1, alpha: 0.6 },
        { lines: View3D.frustum(answer.pose, reach), colour: '--c0', size: 2.5 },
        { dots: [place], colour: '--c0', size: 6 },
      );
    }
    for (const view of views) view.set('answer', items);
  }

  let shownUrl = null;
  function take(blob) {
    const url = URL.createObjectURL(blob);
    const before = shownUrl;
    shownUrl = url;
    return localize(blob, url).finally(() => { if (before) URL.revokeObjectURL(before); });
  }

  function takeFile(file) {
    stopCamera();
    if (file) take(file);
  }

  async function startCamera() {
    const [width, height] = scene.camera;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        video: { width: { ideal: width }, height: { ideal: height }, facingMode: 'environment' },
      });
    } catch (error) {
      byId('words').textContent = `The camera cannot be used: ${error.message}`;
      return;
    }
    const video = byId('video');
    video.srcObject = stream;
    byId('camera').textContent = 'stop the camera';
    await video.play();
    const canvas = document.createElement('canvas');
    while (stream) {
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext('2d').drawImage(video, 0, 0);
      const blob = await new Promise((done) => { canvas.toBlob(done, 'image/jpeg', 0.92); });
      if (stream && blob) await take(blob);
      await new Promise((done) => { setTimeout(done, 50); });
    }
  }

  function stopCamera() {
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = null;
    byId('camera').textContent = 'use the camera';
  }

  byId('file').onchange = (event) => { takeFile(event.target.files[0]); event.target.value = ''; };
  byId('camera').onclick = () => (stream ? stopCamera() : startCamera());
  if (!navigator.mediaDevices) {
    byId('camera').disabled = true;
    byId('camera').title = 'browsers allow the camera only on this machine itself, or over https';
  }
  const drop = byId('drop');
  for (const name of ['dragover', 'drop', 'dragleave']) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle('over', name === 'dragover');
    });
  }
  document.addEventListener('drop', (event) => takeFile(event.dataTransfer.files[0]));
  document.addEventListener('paste', (event) => takeFile(event.clipboardData.files[0]));
})();
