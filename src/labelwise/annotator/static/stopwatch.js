// A person's time for one answer; it stands still while the tab is hidden.

export class Stopwatch {
  #spent = 0;
  #since = null;
  #wanted = false;

  constructor() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#halt() : this.#go()));
  }

  restart() {
    this.#spent = 0;
    this.#since = null;
    this.resume();
  }

  resume() {
    this.#wanted = true;
    this.#go();
  }

  pause() {
    this.#halt();
    this.#wanted = false;
  }

  get seconds() {
    const running = this.#since === null ? 0 : performance.now() - this.#since;
    return (this.#spent + running) / 1000;
  }

  #go() {
    if (this.#wanted && this.#since === null && !document.hidden) this.#since = performance.now();
  }

  #halt() {
    if (this.#since !== null) this.#spent += performance.now() - this.#since;
    this.#since = null;
  }
}
