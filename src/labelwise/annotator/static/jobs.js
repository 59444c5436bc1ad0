// A training or a prediction that the server runs: started, watched and stopped from the page.

import { get, post } from "./api.js";
import { button, duration, element } from "./dom.js";

const EVERY = 700; // ms
const WORDS = { training: "Training on your labels", selecting: "Choosing the next pixels", predicting: "Predicting masks" };

export class JobPanel {
  /** `action` is what `start` asks for; `finished` is called when the job has come to its end. */
  constructor(app, action, finished) {
    this.app = app;
    this.action = action;
    this.finished = finished;
    this.timer = null;
    this.title = element("h3", {});
    this.bar = element("progress", { "aria-label": "Steps of the job" });
    this.line = element("p", { class: "figure-line" });
    this.curve = element("canvas", { class: "curve", width: "560", height: "200", role: "img", "aria-label": "Loss over the steps" });
    this.stopping = button("Stop", () => this.stop(), { class: "danger" });
    this.element = element("div", { class: "job", hidden: true }, this.title, this.bar, this.line, this.curve, this.stopping);
  }

  async start() {
    if (this.timer !== null) return;
    this.app.clear();
    try {
      await post("/api/job", { action: this.action });
    } catch (error) {
      this.app.fail(`Not started: ${error.message}`);
    }
    await this.refresh();
  }

  async stop() {
    this.stopping.disabled = true;
    await post("/api/job", { action: "stop" }).catch((error) => this.app.fail(error.message));
  }

  /** Stops watching; the job itself goes on. */
  rest() {
    clearTimeout(this.timer);
    this.timer = null;
  }

  /** Shows the job as it is; true while it runs, in which case it is looked at again and again. */
  async refresh() {
    this.rest();
    const job = await get("/api/job");
    this.#render(job);
    if (job.state !== "running") return false;
    this.timer = setTimeout(() => this.#look(), EVERY);
    return true;
  }

  async #look() {
    this.timer = null;
    if (!(await this.refresh())) await this.#ended();
  }

  async #ended() {
    Object.assign(this.app.session, await get("/api/session"));
    await this.finished();
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
    const steps = job.steps ? [`step ${job.step} of ${job.steps}`] : [];
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
