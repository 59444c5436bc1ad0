// A canvas that shows an image with zoom and pan; what lies over it is painted by the mode.

const LARGEST_PIXEL = 48; // CSS pixels that one image pixel may take
const MARGIN = 10; // CSS pixels left free around the whole image, so that its edges can be grasped
const TAP = 44; // the distance in CSS pixels within which a finger means a thing

export class Viewer {
  /** `paint(context, viewer)` draws over the image, in CSS pixels of the canvas. */
  constructor(canvas, paint) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.paint = paint;
    this.bitmap = null;
    this.width = 1;
    this.height = 1;
    this.zoom = 1;
    this.x = 0;
    this.y = 0;
    this.tool = null;
    this.pointers = new Map();
    this.busy = null;
    this.scheduled = false;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", (event) => this.#cancel(event));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /** Shows an image of `width` by `height` pixels, whole; null shows nothing. */
  show(bitmap, width, height) {
    this.bitmap = bitmap;
    this.width = width;
    this.height = height;
    this.fit();
  }

  fit() {
    this.look(this.width / 2, this.height / 2, 1);
  }

  /** Puts an image position into the middle, as far as the image's edges allow; zoom 1 shows the whole image. */
  look(x, y, zoom = this.zoom) {
    this.zoom = Math.min(Math.max(zoom, 1), Math.max(LARGEST_PIXEL / this.#fitting(), 1));
    this.x = this.#inside(x, this.width, this.canvas.clientWidth);
    this.y = this.#inside(y, this.height, this.canvas.clientHeight);
    this.request();
  }

  /** Zooms about a position on the canvas, its middle unless told. */
  zoomBy(factor, left = this.canvas.clientWidth / 2, top = this.canvas.clientHeight / 2) {
    const [x, y] = this.toImage(left, top);
    const before = this.scale;
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), Math.max(LARGEST_PIXEL / this.#fitting(), 1));
    const ratio = before / this.scale;
    this.look(x + (this.x - x) * ratio, y + (this.y - y) * ratio);
  }

  /** CSS pixels per image pixel. */
  get scale() {
    return this.#fitting() * this.zoom;
  }

  toScreen(x, y) {
    const { clientWidth, clientHeight } = this.canvas;
    return [(x - this.x) * this.scale + clientWidth / 2, (y - this.y) * this.scale + clientHeight / 2];
  }

  toImage(left, top) {
    const { clientWidth, clientHeight } = this.canvas;
    return [(left - clientWidth / 2) / this.scale + this.x, (top - clientHeight / 2) / this.scale + this.y];
  }

  /** The radius in image pixels within which a pointer means a thing: wider for a finger. */
  reach(event) {
    return (event.pointerType === "touch" ? TAP / 2 : 8) / this.scale;
  }

  request() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.draw();
    });
  }

  draw() {
    const { canvas, context } = this;
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    if (!this.bitmap) return;
    const [left, top] = this.toScreen(0, 0);
    context.imageSmoothingEnabled = this.scale < 4;
    context.drawImage(this.bitmap, left, top, this.width * this.scale, this.height * this.scale);
    this.paint(context, this);
  }

  #fitting() {
    const { clientWidth, clientHeight } = this.canvas;
    const [width, height] = [clientWidth - 2 * MARGIN, clientHeight - 2 * MARGIN];
    return Math.max(Math.min(width / this.width, height / this.height), 1e-6);
  }

  #inside(center, length, shown) {
    const half = shown / this.scale / 2;
    return half * 2 >= length ? length / 2 : Math.min(Math.max(center, half), length - half);
  }

  #resize() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    this.look(this.x, this.y);
    this.draw();
  }

  #place(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  }

  #wheel(event) {
    event.preventDefault();
    this.zoomBy(Math.exp(-event.deltaY / 300), ...this.#place(event));
  }

  #down(event) {
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.#place(event));
    if (this.pointers.size > 1) {
      if (this.busy === "tool") this.tool.cancel();
      this.busy = "pan";
    } else if (this.tool && event.button === 0) {
      this.busy = "tool";
      this.tool.down(...this.toImage(...this.#place(event)), event);
    } else {
      this.busy = "pan";
    }
  }

  #move(event) {
    const now = this.#place(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    if (this.busy === "tool") {
      this.tool.move(...this.toImage(...now), event);
    } else {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        this.zoomBy(distance(now, other) / Math.max(distance(before, other), 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      }
      const share = this.scale * (other ? 2 : 1);
      this.look(this.x - (now[0] - before[0]) / share, this.y - (now[1] - before[1]) / share);
    }
    this.pointers.set(event.pointerId, now);
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    if (this.busy === "tool") this.tool.up(...this.toImage(...this.#place(event)), event);
    if (this.pointers.size === 0) this.busy = null;
  }

  #cancel(event) {
    this.pointers.delete(event.pointerId);
    if (this.busy === "tool") this.tool.cancel();
    if (this.pointers.size === 0) this.busy = null;
  }
}

const distance = (one, other) => Math.hypot(one[0] - other[0], one[1] - other[1]);

/** Zoom keys that all modes with a canvas share; true where the key was one of them. */
export function zoomKey(event, viewer, reset = () => viewer.fit()) {
  if (event.key === "+" || event.key === "=") viewer.zoomBy(1.5);
  else if (event.key === "-") viewer.zoomBy(1 / 1.5);
  else if (event.key === "0") reset();
  else return false;
  return true;
}
