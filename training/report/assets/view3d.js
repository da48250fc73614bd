'use strict';

/**
 * A 3D view on a plain canvas, turned by mouse, touch and keys.
 *
 * A canvas and not WebGL: the page must open on any machine, and a few thousand points need no more.
 * Poses are row-major (R | t) of 12 numbers, world_T_camera, optical axes; points are [x, y, z] in
 * the world. What is drawn is given in named layers, drawn in the order in which they were first set.
 */
class View3D {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{origin: number[], axes: number[][]}} frame right, forward and up in the world
   * @param {(id: number) => void} onPick called with the id of a clicked dot
   */
  constructor(canvas, frame, onPick = () => {}) {
    this.canvas = canvas;
    canvas.view = this; // for whoever looks at the page from outside
    this.frame = frame;
    this.onPick = onPick;
    this.layers = new Map();
    this.target = [0, 0, 0];
    this.radius = 1;
    this.floor = 0;
    this.pointers = new Map();
    this.look(-0.5, 0.9);
    this._listen();
    new ResizeObserver(() => this.redraw()).observe(canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.redraw());
  }

  /** Replaces a layer: a list of {points|lines|dots, colour or colours, size, alpha, dash, ids}. */
  set(name, items) {
    this.layers.set(name, items.map((item) => ({
      ...item,
      points: item.points?.map((p) => this._local(p)),
      lines: item.lines?.map(([a, b]) => [this._local(a), this._local(b)]),
      dots: item.dots?.map((p) => this._local(p)),
    })));
    this.redraw();
  }

  /** Moves the view so that these points of the world fill it; the floor is drawn below all. */
  fit(points, others = []) {
    const local = points.map((p) => this._local(p));
    if (!local.length) return;
    const low = [0, 1, 2].map((k) => Math.min(...local.map((p) => p[k])));
    const high = [0, 1, 2].map((k) => Math.max(...local.map((p) => p[k])));
    this.target = low.map((value, k) => (value + high[k]) / 2);
    this.radius = Math.max(Math.hypot(...high.map((value, k) => value - low[k])) / 2, 0.25);
    const heights = others.map((p) => this._local(p)[2]).sort((a, b) => a - b);
    this.floor = Math.min(low[2], heights[Math.floor(0.02 * heights.length)] ?? low[2]);
    this.home = { target: [...this.target] };
    this.reset();
  }

  /** Turns the view: yaw about the vertical, pitch from the horizon (pi / 2 is from above). */
  look(yaw, pitch) {
    this.yaw = yaw;
    this.pitch = Math.min(Math.max(pitch, -0.2), Math.PI / 2);
    this.redraw();
  }

  /** Back to where `fit` looked. */
  reset() {
    this.zoom = 1;
    if (this.home) this.target = [...this.home.target];
    this.look(-0.5, 0.9);
  }

  /** From above. */
  above() {
    this.look(0, Math.PI / 2);
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this._draw();
    });
  }

  /** Lines of the pyramid that a camera sees, `reach` metres deep. */
  static frustum(pose, reach, aspect = 0.75) {
    const w = 0.6 * reach;
    const h = w * aspect;
    const at = ([x, y, z]) => [0, 1, 2].map((r) =>
      pose[4 * r] * x + pose[4 * r + 1] * y + pose[4 * r + 2] * z + pose[4 * r + 3]);
    const eye = at([0, 0, 0]);
    const corners = [[-w, -h, reach], [w, -h, reach], [w, h, reach], [-w, h, reach]].map(at);
    const roof = at([0, -1.35 * h, reach]); // a small roof says which side of the image is up
    return [
      ...corners.map((c) => [eye, c]),
      ...corners.map((c, i) => [c, corners[(i + 1) % 4]]),
      [corners[0], roof],
      [roof, corners[1]],
    ];
  }

  /** Lines of three great circles of an ellipsoid; the columns of `axes` (9, row-major) span it. */
  static ellipsoid(centre, axes, steps = 40) {
    const lines = [];
    for (const [a, b] of [[0, 1], [1, 2], [2, 0]]) {
      const at = (i) => {
        const angle = (2 * Math.PI * i) / steps;
        const [c, s] = [Math.cos(angle), Math.sin(angle)];
        return [0, 1, 2].map((r) => centre[r] + c * axes[3 * r + a] + s * axes[3 * r + b]);
      };
      for (let i = 0; i < steps; i++) lines.push([at(i), at(i + 1)]);
    }
    return lines;
  }

  _local(p) {
    const offset = p.map((value, k) => value - this.frame.origin[k]);
    return this.frame.axes.map((a) => a[0] * offset[0] + a[1] * offset[1] + a[2] * offset[2]);
  }

  /** A function from local coordinates to [x, y, depth] in CSS pixels; null behind the eye. */
  _projector(width, height) {
    const [cy, sy] = [Math.cos(this.yaw), Math.sin(this.yaw)];
    const [cp, sp] = [Math.cos(this.pitch), Math.sin(this.pitch)];
    const focal = 1.6 * Math.max(Math.min(width, height), 1);
    const distance = (3.3 * this.radius) / this.zoom;
    this.pixelsPerMetre = focal / distance;
    return (p) => {
      const [x, y, z] = p.map((value, k) => value - this.target[k]);
      const forward = y * cy - x * sy;
      const depth = forward * cp - z * sp + distance;
      if (depth < 0.02 * distance) return null;
      const scale = focal / depth;
      return [
        width / 2 + (x * cy + y * sy) * scale,
        height / 2 - (forward * sp + z * cp) * scale,
        depth,
      ];
    };
  }

  _draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext('2d');
    context.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const colour = (name) => (name.startsWith('--') ? style.getPropertyValue(name).trim() : name);
    const project = this._projector(width, height);
    this._drawGrid(context, project, colour);
    this.targets = [];
    for (const items of this.layers.values()) {
      for (const item of items) this._drawItem(context, project, colour, item);
    }
    context.globalAlpha = 1;
    canvas.dataset.drawn = String(Number(canvas.dataset.drawn || 0) + 1);
  }

  _drawGrid(context, project, colour) {
    const step = niceStep(this.radius / 4);
    const count = Math.ceil((1.5 * this.radius) / step);
    const [x0, y0] = this.target.map((value) => Math.round(value / step) * step);
    context.strokeStyle = colour('--line');
    context.lineWidth = 1;
    context.globalAlpha = 1;
    context.beginPath();
    for (let i = -count; i <= count; i++) {
      for (const [a, b] of [
        [[x0 + i * step, y0 - count * step], [x0 + i * step, y0 + count * step]],
        [[x0 - count * step, y0 + i * step], [x0 + count * step, y0 + i * step]],
      ]) {
        const ends = [project([...a, this.floor]), project([...b, this.floor])];
        if (ends.some((end) => end === null)) continue;
        context.moveTo(ends[0][0], ends[0][1]);
        context.lineTo(ends[1][0], ends[1][1]);
      }
    }
    context.stroke();
    context.fillStyle = colour('--soft');
    context.font = '12px system-ui, sans-serif';
    context.fillText(`grid ${step} m`, 10, this.canvas.clientHeight - 10);
  }

  _drawItem(context, project, colour, item) {
    context.globalAlpha = item.alpha ?? 1;
    const size = item.size ?? 1.5;
    const own = (i) => colour(item.colours ? item.colours[i] : item.colour);
    if (item.points) {
      context.fillStyle = colour(item.colour);
      for (const point of item.points) {
        const at = project(point);
        if (at) context.fillRect(at[0] - size / 2, at[1] - size / 2, size, size);
      }
    }
    if (item.lines) {
      context.lineWidth = size;
      context.setLineDash(item.dash ?? []);
      item.lines.forEach(([a, b], i) => {
        const [from, to] = [project(a), project(b)];
        if (!from || !to) return;
        context.strokeStyle = own(i);
        context.beginPath();
        context.moveTo(from[0], from[1]);
        context.lineTo(to[0], to[1]);
        context.stroke();
      });
      context.setLineDash([]);
    }
    if (item.dots) this._drawDots(context, project, own, item, size);
  }

  _drawDots(context, project, own, item, size) {
    const edge = getComputedStyle(this.canvas).getPropertyValue('--card').trim();
    const placed = item.dots.map((dot, i) => ({ at: project(dot), i })).filter(({ at }) => at);
    placed.sort((a, b) => b.at[2] - a.at[2]); // far ones first
    for (const { at, i } of placed) {
      context.beginPath();
      context.arc(at[0], at[1], size, 0, 2 * Math.PI);
      context.fillStyle = own(i);
      context.fill();
      context.lineWidth = 1;
      context.strokeStyle = edge;
      context.stroke();
      if (item.ids) this.targets.push({ x: at[0], y: at[1], id: item.ids[i] });
    }
  }

  /** The id of the dot nearest to a place on the canvas, at most 22 pixels away. */
  _pick(x, y) {
    let best = null;
    let nearest = 22;
    for (const target of this.targets || []) {
      const distance = Math.hypot(target.x - x, target.y - y);
      if (distance < nearest) [best, nearest] = [target.id, distance];
    }
    return best;
  }

  _listen() {
    const { canvas } = this;
    const place = (event) => [event.offsetX, event.offsetY];
    canvas.addEventListener('pointerdown', (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, place(event));
      this.moved = this.pointers.size > 1;
      this.start = place(event);
    });
    canvas.addEventListener('pointermove', (event) => {
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      const now = place(event);
      if (this.pointers.size === 1 && !this.moved) {
        if (Math.hypot(now[0] - this.start[0], now[1] - this.start[1]) < 5) return;
        this.moved = true;
      }
      if (this.pointers.size === 2) this._pinch(event.pointerId, now);
      else if (event.shiftKey || event.buttons === 2) this._pan(now[0] - before[0], now[1] - before[1]);
      else {
        this.look(
          this.yaw - (now[0] - before[0]) * 0.008,
          this.pitch + (now[1] - before[1]) * 0.008,
        );
      }
      this.pointers.set(event.pointerId, now);
    });
    const release = (event) => {
      if (!this.pointers.delete(event.pointerId) || this.moved || event.type !== 'pointerup') return;
      const id = this._pick(...place(event));
      if (id !== null) this.onPick(id);
    };
    canvas.addEventListener('pointerup', release);
    canvas.addEventListener('pointercancel', release);
    canvas.addEventListener('contextmenu', (event) => event.preventDefault());
    canvas.addEventListener('wheel', (event) => {
      // Only once it was clicked: a page that is scrolled through must not get stuck here.
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      this._scale(Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
    canvas.addEventListener('keydown', (event) => {
      if (event.key === '+' || event.key === '=') this._scale(1.2);
      else if (event.key === '-') this._scale(1 / 1.2);
      else if (event.key === '0') this.reset();
    });
  }

  _scale(factor) {
    this.zoom = Math.min(Math.max(this.zoom * factor, 0.2), 40);
    this.redraw();
  }

  _pinch(id, now) {
    const before = [...this.pointers.values()];
    const after = [...this.pointers].map(([key, value]) => (key === id ? now : value));
    const gap = ([a, b]) => Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1);
    const middle = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    const [m, n] = [middle(before), middle(after)];
    this._pan(n[0] - m[0], n[1] - m[1]);
    this._scale(gap(after) / gap(before));
  }

  /** Moves the target so that what lies there follows the pointer. */
  _pan(dx, dy) {
    const [cy, sy] = [Math.cos(this.yaw), Math.sin(this.yaw)];
    const [cp, sp] = [Math.cos(this.pitch), Math.sin(this.pitch)];
    const [right, up] = [-dx / this.pixelsPerMetre, dy / this.pixelsPerMetre];
    this.target[0] += right * cy - up * sp * sy;
    this.target[1] += right * sy + up * sp * cy;
    this.target[2] += up * cp;
    this.redraw();
  }
}

/** The 1, 2 or 5 times a power of ten that is nearest above. */
function niceStep(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const factor = [1, 2, 5, 10].find((f) => f * power >= value * 0.999);
  return Number((factor * power).toPrecision(1));
}
