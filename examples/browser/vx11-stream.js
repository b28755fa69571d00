// A client for VX11 event streams in browsers, without dependencies.
//
//   import { VX11Stream } from "./vx11-stream.js";
//   const getToken = async () => (await fetch("/my/own/sse-token")).text();
//   const stream = new VX11Stream({ base: "https://events.example.com", getToken, events: ["deploy"] });
//   stream.addEventListener("message", ({ detail }) => console.log(detail.data));   // events without a name
//   stream.addEventListener("deploy", ({ detail }) => console.log(detail.data));
//   stream.addEventListener("gap", ({ detail }) => refetchState(detail.data.reason));
//   stream.addEventListener("state", ({ detail }) => console.log(detail.state));    // connecting, open, waiting, closed
//   stream.close();
//
// One stream for all tabs of an origin: the tab that holds a Web Lock is connected, and passes on what it gets through
// a BroadcastChannel. When it closes, another takes the lock and resumes with the latest cursor. A tab that joins gets
// what comes from then on, and no snapshot: fetch your state when it says `open`. What a tab should have been passed and
// was not is a gap with the reason `not_passed_on`. Where there are no Web Locks (pages over plain HTTP from another
// host) each tab has a stream of its own.
//
// EventSource reconnects by itself, and its Last-Event-ID is a cursor that opens the stream again although the token in
// the URL has expired. Only when the browser gives up (403: the cursor has expired too) is a new token fetched.

const ENGINE_EVENTS = ["snapshot", "heartbeat", "gap", "drain", "overloaded", "error"];
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;
// A token, an answer and the first bytes, which come at once.
const LONGEST_CONNECT = 10_000;
// Two heartbeats may be late by this much before the line counts as dead.
const MARGIN = 5_000;
// Two of the rarest heartbeats that a backend can be set to: until two have shown how often they come.
const LONGEST_SILENCE = 2 * 300_000 + MARGIN;

export class VX11Stream extends EventTarget {
  /**
   * @param {object} options
   * @param {() => Promise<string>} options.getToken  fetches an ephemeral token from your own server, which holds the
   *   principal token; called again whenever a new one is needed
   * @param {string} [options.base]     origin of the backend; default: of this page
   * @param {string[]} [options.topics] [options.severities] [options.modules]  what to filter by; default: everything
   * @param {string[]} [options.events] names of published events to listen to, besides unnamed ones
   * @param {boolean | string} [options.shared]  one stream for all tabs; a text, such as the user's id, keeps it to the
   *   tabs that give the same; default: true
   * @param {number} [options.silence]  milliseconds without anything after which a line counts as dead; default: a
   *   little more than two of the heartbeats that it sees
   */
  constructor({
    getToken, base = "", topics = [], severities = [], modules = [], events = [], shared = true, silence,
  }) {
    super();
    if (events.includes("state")) throw new TypeError('"state" is an event of the client itself');
    this.getToken = getToken;
    this.base = base;
    this.filter = { topic: topics.join(), severity: severities.join(), module: modules.join() };
    this.names = [...new Set(["message", ...events, ...ENGINE_EVENTS.filter((name) => name !== "error")])];
    this.state = "connecting";
    this.leads = false;
    this.cursor = null;
    // Which numbering of published events this tab follows, and the number of the latest.
    this.line = null;
    this.count = 0;
    this.pause = FIRST_PAUSE;
    this.learns = silence === undefined;
    this.silence = silence ?? LONGEST_SILENCE;
    this.retry = 0;
    this.closing = new AbortController();
    const name = ["vx11-stream", shared, base, ...Object.values(this.filter), events.join()].join(":");
    if (shared && navigator.locks && globalThis.BroadcastChannel) {
      this.channel = new BroadcastChannel(name);
      this.channel.onmessage = ({ data }) => this.#hear(data);
      this.#say({ kind: "hello" });
      navigator.locks
        .request(name, { signal: this.closing.signal }, () => this.#lead())
        // Closed while it waited, or locks are denied here.
        .catch((error) => error.name === "AbortError" || this.#lead());
    } else {
      this.#lead();
    }
  }

  /** Closes this tab's part; if it was the connected one, another tab takes over. */
  close() {
    this.closing.abort();
    this.#disconnect();
    this.leads = false;
    this.channel?.close();
    this.release?.();
    this.#set("closed");
  }

  #lead() {
    if (this.closing.signal.aborted) return undefined;
    this.leads = true;
    this.line ??= Math.random();
    this.#connect();
    // Held until close(): the lock goes to the next tab when this one is closed or dies.
    return new Promise((resolve) => (this.release = resolve));
  }

  async #connect() {
    const attempt = (this.attempt = {});
    this.#set("connecting");
    this.#giveUpIn(LONGEST_CONNECT, "no answer");
    let token;
    try {
      token = await this.getToken();
    } catch (error) {
      if (attempt === this.attempt) this.#later(String(error));
      return;
    }
    // The token came after this attempt was given up, or after close().
    if (attempt !== this.attempt) return;
    const query = new URLSearchParams({ token });
    for (const [field, value] of Object.entries(this.filter)) if (value) query.set(field, value);
    // A new EventSource sends no Last-Event-ID of its own.
    if (this.cursor) query.set("lastEventId", this.cursor);
    const source = (this.source = new EventSource(`${this.base}/operator/api/events/stream?${query}`));
    source.onopen = () => {
      this.#set("open");
      this.#giveUpIn(this.silence, "no heartbeat");
    };
    for (const name of this.names) source.addEventListener(name, (event) => this.#receive(name, event));
    source.onerror = (event) => {
      // The server's own `event: error` has data; the browser's has not.
      if (event.data !== undefined) return this.#receive("error", event);
      if (source.readyState === EventSource.CLOSED) return this.#later("the browser has given up");
      // It comes back by itself, in its own time.
      this.beat = null;
      this.#set("connecting");
      return this.#giveUpIn(this.retry + Math.max(this.silence, LONGEST_CONNECT), "no answer");
    };
  }

  #receive(type, event) {
    const detail = { id: event.lastEventId, data: parse(event.data) };
    if (type === "heartbeat" && this.learns) this.#learn(Date.parse(detail.data.timestamp));
    this.retry = type === "drain" || type === "overloaded" ? (detail.data.retry_ms ?? 0) : 0;
    this.#giveUpIn(this.silence, "no heartbeat");
    if (type !== "overloaded") this.pause = FIRST_PAUSE;
    this.cursor = detail.id || this.cursor;
    if (!ENGINE_EVENTS.includes(type)) this.count += 1;
    this.#say({ kind: "event", type, detail });
    this.#dispatch(type, detail);
  }

  // By the server's clock: a busy or hidden tab may get two heartbeats at once.
  #learn(beat) {
    const apart = beat - this.beat;
    if (this.beat && apart > 0) this.silence = Math.min(2 * apart + MARGIN, LONGEST_SILENCE);
    this.beat = beat;
  }

  // A half-open line says nothing at all; heartbeats make the silence meaningful.
  #giveUpIn(milliseconds, reason) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      // It may also be that heartbeats have become rarer.
      if (this.learns && this.state === "open") this.silence = Math.min(2 * this.silence, LONGEST_SILENCE);
      this.#later(reason);
    }, milliseconds);
  }

  // A new token and a new connection, after a pause that grows and is never the same for two clients.
  #later(reason) {
    this.#disconnect();
    this.#set("waiting", reason);
    this.timer = setTimeout(() => this.#connect(), this.pause * (0.5 + Math.random()));
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
  }

  #disconnect() {
    clearTimeout(this.timer);
    this.attempt = null;
    this.source?.close();
    this.beat = null;
  }

  // To the other tabs.
  #say(message) {
    const { line, count, cursor, state } = this;
    this.channel?.postMessage({ line, count, cursor, state, ...message });
  }

  // From the other tabs: a leader's events and state, or a newcomer's question.
  #hear({ kind, type, detail, line, count, cursor, state, reason }) {
    if (kind === "hello") {
      if (this.leads) this.#say({ kind: "state" });
      return;
    }
    if (this.leads) return;
    if (kind === "state") {
      if (this.line === null) [this.line, this.count, this.cursor] = [line, count, cursor];
      this.#set(state, reason);
    } else if (this.#isNews(type, line, count)) {
      [this.line, this.count, this.cursor] = [line, count, cursor];
      this.#dispatch(type, detail);
    }
  }

  // A new leader may get again what the last one had passed on to some tabs, but not to it: the number tells, and tells
  // too when something never came here.
  #isNews(type, line, count) {
    if (this.line === null || type === "gap") return true;
    const due = ENGINE_EVENTS.includes(type) ? this.count : this.count + 1;
    if (line === this.line && count < due) return false;
    if (line !== this.line || count > due) {
      this.#dispatch("gap", { id: this.cursor, data: { type: "gap", reason: "not_passed_on", after: null, before: null } });
    }
    return true;
  }

  #set(state, reason) {
    if (state === this.state) return;
    this.state = state;
    if (this.leads) this.#say({ kind: "state", reason });
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
