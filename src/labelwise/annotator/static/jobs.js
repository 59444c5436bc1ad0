// A training or a prediction that the server runs: started, watched and stopped from the page.

import { get, post } from "./api.js";
import { button, duration, element } from "./dom.js";

const EVERY = 700; // ms
const WORDS = { training: "Training on your labels", selecting: "Choosing pixels", predicting: "Predicting masks" };

export class JobPanel {
  /** `changed(running)` is called when a job has been started here, and when one has come to its end. */
  constructor(app, changed) {
    this.app = app;
    this.changed = changed;
    this.running = false;
    this.timer = null;
    this.ticket = null;
    this.title = element("h3", {});
    this.bar = element("progress", { "aria-label": "Steps of the job" });
    this.line = element("p", { class: "figure-line" });
    this.curve = element("canvas", { class: "curve", width: "560", height: "170", role: "img", "aria-label": "Loss over the steps" });
    this.stopping = button("Stop", () => this.stop(), { class: "danger" });
    this.element = element("div", { class: "job", hidden: true }, this.title, this.stopping, this.bar, this.line, this.curve);
  }

  /** Asks the server for a job, once everything that was answered before is known to it. */
  async start(action) {
    if (this.running) return;
    this.running = true;
    this.app.clear();
    this.changed(true);
    await this.app.outbox.settled();
    await post("/api/job", { action }).catch((error) => this.app.fail(`Not started: ${error.message}`));
    await this.#look();
  }

  async stop() {
    this.stopping.disabled = true;
    await post("/api/job", { action: "stop" }).catch((error) => this.app.fail(error.message));
  }

  /** Stops watching; the job itself goes on. */
  rest() {
    clearTimeout(this.timer);
    this.ticket = null;
  }

  /** Shows the job as it is; while it runs, it is looked at again and again. */
  async refresh() {
    this.rest();
    const ticket = (this.ticket = Symbol("job"));
    const job = await get("/api/job");
    if (ticket !== this.ticket) return null;
    this.running = job.state === "running";
    this.#render(job);
    if (this.running) this.timer = setTimeout(() => this.#look(), EVERY);
    return job;
  }

  async #look() {
    try {
      const job = await this.refresh();
      if (!job || this.running) return;
      if (job.state === "failed") this.app.fail(`${this.title.textContent}. ${job.message}`);
      Object.assign(this.app.session, await get("/api/session"));
      await this.changed(false);
    } catch (error) {
      this.app.fail(error.message);
    }
  }

  #render(job) {
    this.element.hidden = job.state === "idle";
    this.element.dataset.state = job.state;
    const words = WORDS[job.what] ?? "The job";
    this.title.textContent = job.state === "running" ? `${words}…` : `${words}: ${job.state}`;
    this.bar.hidden = job.state !== "running";
    if (job.steps) Object.assign(this.bar, { max: job.steps, value: job.step });
    else this.bar.removeAttribute("value");
    const score = job.score === null ? [] : [`mIoU ${job.score.toFixed(1)} %`];
    const steps = job.step || job.steps ? [`step ${job.step}${job.steps ? ` of ${job.steps}` : ""}`] : [];
    const said = job.message ? [job.message] : [];
    this.line.textContent = [...steps, ...score, duration(job.seconds ?? 0), ...said].join(" · ");
    this.stopping.hidden = job.state !== "running";
    if (job.state !== "running") this.stopping.disabled = false;
    this.curve.hidden = job.losses.length < 2;
    if (!this.curve.hidden) paintCurve(this.curve, job.losses);
  }
}

function paintCurve(canvas, losses) {
  const context = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const { width, height } = canvas;
  const edge = 44;
  const highest = Math.max(...losses.map(([, loss]) => loss), 1e-9);
  const last = losses.at(-1)[0] || 1;
  const place = ([step, loss]) => [edge + (step / last) * (width - edge - 12), height - 34 - (loss / highest) * (height - 54)];
  context.clearRect(0, 0, width, height);
  context.font = "20px system-ui, sans-serif";
  context.fillStyle = style.color;
  context.fillText("loss", 4, 20);
  context.fillText(highest.toPrecision(2), 4, 44);
  context.fillText("0", 22, height - 30);
  context.fillText(`step ${last}`, width - 110, height - 8);
  context.strokeStyle = style.borderColor;
  context.strokeRect(edge, 20, width - edge - 12, height - 54);
  context.strokeStyle = style.getPropertyValue("accent-color");
  context.lineWidth = 3;
  context.beginPath();
  for (const pair of losses) context.lineTo(...place(pair));
  context.stroke();
  context.lineWidth = 1;
}
