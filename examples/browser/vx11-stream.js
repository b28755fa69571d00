// A client for VX11 event streams in browsers, without dependencies.
//
//   import { VX11Stream } from "./vx11-stream.js";
//   const stream = new VX11Stream({ base: "https://events.example.com", getToken });
//   stream.addEventListener("message", (e) => console.log(e.detail.data));
//   stream.addEventListener("gap", (e) => refetchState(e.detail.data));
//
// One stream for all tabs of an origin: the tab that holds a Web Lock is connected, and passes on what it gets through
// a BroadcastChannel. When it closes, another takes the lock and resumes with the latest cursor.
//
// EventSource reconnects by itself, and its Last-Event-ID is a cursor that opens the stream again although the token in
// the URL has expired. Only when the browser gives up (403: the cursor has expired too) is a new token fetched.

const ENGINE_EVENTS = ["snapshot", "heartbeat", "gap", "drain", "overloaded", "error"];
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;
// Longer than two heartbeats of the default: a line that is silent for so long is dead.
const SILENCE = 40_000;

export class VX11Stream extends EventTarget {
  /**
   * @param {object} options
   * @param {() => Promise<string>} options.getToken  fetches an ephemeral token from your own server, which holds the
   *   principal token; called again whenever a new one is needed
   * @param {string} [options.base]     origin of the backend; default: of this page
   * @param {string[]} [options.topics] [options.severities] [options.modules]  what to filter by; default: everything
   * @param {string[]} [options.events] names of published events to listen to, besides unnamed ones
   * @param {boolean} [options.shared]  one stream for all tabs; default: true
   */
  constructor({ getToken, base = "", topics = [], severities = [], modules = [], events = [], shared = true }) {
    super();
    this.getToken = getToken;
    this.base = base;
    this.filter = { topic: topics.join(), severity: severities.join(), module: modules.join() };
    this.names = [...new Set(["message", ...events, ...ENGINE_EVENTS.filter((name) => name !== "error")])];
    this.state = "connecting";
    this.leads = false;
    this.cursor = null;
    this.pause = FIRST_PAUSE;
    this.closing = new AbortController();
    const name = `vx11-stream:${base}:${Object.values(this.filter).join(";")}:${events.join()}`;
    if (shared && navigator.locks && globalThis.BroadcastChannel) {
      this.channel = new BroadcastChannel(name);
      this.channel.onmessage = ({ data }) => this.#hear(data);
      this.channel.postMessage({ kind: "hello" });
      navigator.locks
        .request(name, { signal: this.closing.signal }, () => this.#lead())
        .catch((error) => error.name === "AbortError" || this.#set("failed", String(error)));
    } else {
      this.#lead();
    }
  }

  /** Closes this tab's part; if it was the connected one, another tab takes over. */
  close() {
    this.closing.abort();
    this.source?.close();
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    this.channel?.close();
    this.release?.();
    this.#set("closed");
  }

  // What other tabs say: a leader's events and state, or a newcomer's question.
  #hear({ kind, type, detail, state, cursor }) {
    if (kind === "hello" && this.leads) this.channel.postMessage({ kind: "state", state: this.state, cursor: this.cursor });
    if (this.leads) return;
    if (kind === "event") {
      this.cursor = detail.id || this.cursor;
      this.#dispatch(type, detail);
    } else if (kind === "state") {
      this.cursor = cursor ?? this.cursor;
      this.#set(state);
    }
  }

  #lead() {
    if (this.closing.signal.aborted) return undefined;
    this.leads = true;
    // Held until close(): the lock goes to the next tab when this one is closed or dies.
    const held = new Promise((resolve) => (this.release = resolve));
    this.#connect();
    return held;
  }

  async #connect() {
    clearTimeout(this.timer);
    let token;
    try {
      token = await this.getToken();
    } catch (error) {
      return this.#later(String(error));
    }
    if (this.closing.signal.aborted) return undefined;
    const query = new URLSearchParams({ token });
    for (const [field, value] of Object.entries(this.filter)) if (value) query.set(field, value);
    // A new EventSource sends no Last-Event-ID of its own.
    if (this.cursor) query.set("lastEventId", this.cursor);
    const source = new EventSource(`${this.base}/operator/api/events/stream?${query}`);
    this.source = source;
    source.onopen = () => {
      this.#set("open");
      this.#listen();
    };
    for (const name of this.names) source.addEventListener(name, (event) => this.#receive(name, event));
    source.onerror = (event) => {
      // The server's own `event: error` has data; the browser's has not.
      if (event.data) return this.#receive("error", event);
      if (source.readyState === EventSource.CLOSED) return this.#later("the browser has given up");
      return this.#set("connecting");
    };
    return undefined;
  }

  #receive(type, event) {
    this.#listen();
    if (type !== "overloaded") this.pause = FIRST_PAUSE;
    if (event.lastEventId) this.cursor = event.lastEventId;
    const detail = { id: event.lastEventId, data: parse(event.data) };
    this.channel?.postMessage({ kind: "event", type, detail });
    this.#dispatch(type, detail);
  }

  // A half-open line says nothing at all; heartbeats make the silence meaningful.
  #listen() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.#later("no heartbeat"), SILENCE);
  }

  // A new token and a new connection, after a pause that grows and is never the same for two clients.
  #later(reason) {
    this.source?.close();
    clearTimeout(this.silence);
    if (this.closing.signal.aborted) return;
    this.#set("waiting", reason);
    this.timer = setTimeout(() => this.#connect(), this.pause * (0.5 + Math.random()));
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
  }

  #set(state, reason) {
    if (state === this.state) return;
    this.state = state;
    if (this.leads && state !== "closed") this.channel?.postMessage({ kind: "state", state, cursor: this.cursor });
    this.#dispatch("state", { state, reason });
  }

  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
