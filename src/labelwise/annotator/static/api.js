// The server's interface, and the promise that no answer is lost: an answer keeps its uuid and is sent until it is
// acknowledged or refused.

const PATIENCE = 20000; // ms after which a silent server counts as gone
const TEMPORARY = new Set([401, 502, 503, 504]);

/** The server has answered with an error: `status`, one line, and for a conflict the image's current revision. */
export class Refused extends Error {
  constructor(status, line, revision = null) {
    super(line);
    this.status = status;
    this.revision = revision;
  }
}

class Unreachable extends Error {}

/** Tells the page whether the server answers: events `change` with `state` online, offline or unauthorized. */
class Connection extends EventTarget {
  state = "online";

  report(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}

export const connection = new Connection();

async function attempt(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE), ...options });
  } catch {
    connection.report("offline");
    throw new Unreachable(path);
  }
  connection.report(response.status === 401 ? "unauthorized" : "online");
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Refused(response.status, told.error ?? `${response.status} ${response.statusText}`, told.revision ?? null);
}

/** Tries until the server has answered; `retrying` is called before each further try. */
async function persistently(path, options, retrying = () => {}) {
  for (let wait = 300; ; wait = Math.min(wait * 2, 3000)) {
    try {
      return await attempt(path, options);
    } catch (error) {
      if (!(error instanceof Unreachable) && !TEMPORARY.has(error.status)) throw error;
    }
    retrying();
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

const json = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const get = async (path) => (await persistently(path)).json();
export const getBytes = async (path) => new Uint8Array(await (await persistently(path)).arrayBuffer());
export const getBlob = async (path) => (await persistently(path)).blob();

/** A request that is no answer and may fail, such as a heartbeat. */
export const post = async (path, body) => (await attempt(path, json(body))).json();

export const imagePath = (kind, id) => `/api/${kind}/${encodeURIComponent(id)}`;

/** Answers on their way to the server, one after the other; event `change` when their number or state changes. */
export class Outbox extends EventTarget {
  waiting = 0;
  retrying = false;
  #last = Promise.resolve();

  /**
   * Sends a JSON answer; `make` gives its body when its turn has come, once for all tries.
   * Resolves to the server's reply; rejects with Refused.
   */
  send(path, make) {
    return this.#queue(() => [path, json(make())]);
  }

  /** Sends a mask, packed. */
  sendMask(make) {
    return this.#queue(async () => {
      const { path, mask } = make();
      const packed = new Blob([mask]).stream().pipeThrough(new CompressionStream("gzip"));
      const body = await new Response(packed).blob();
      const headers = { "Content-Type": "application/octet-stream", "Content-Encoding": "gzip" };
      return [path, { method: "POST", headers, body }];
    });
  }

  /** Resolves when everything sent up to now is acknowledged or refused. */
  settled() {
    return this.#last;
  }

  #queue(prepare) {
    this.#changed(1, this.retrying);
    const sent = this.#last.then(async () => {
      try {
        const [path, options] = await prepare();
        const response = await persistently(path, options, () => this.#changed(0, true));
        return await response.json();
      } finally {
        this.#changed(-1, false);
      }
    });
    this.#last = sent.catch(() => {});
    return sent;
  }

  #changed(more, retrying) {
    this.waiting += more;
    this.retrying = retrying;
    this.dispatchEvent(new Event("change"));
  }
}
