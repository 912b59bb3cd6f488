/** Connections that are accepted, and requests, between two looks at the memory; powers of two. */
const connectionsPerCheck = 64;
const requestsPerCheck = 1_024;

/**
 * What the proxy does without because it has too little of something: memory, time, connections. Written by ./overload-manager.ts,
 * read on the way of connections and requests. Actions have the names of Envoy's overload manager ("Overload manager", Envoy docs).
 */
export class OverloadState {
  /** `envoy.overload_actions.disable_http_keepalive`: connections end with the request they are serving. */
  disablesKeepAlive: boolean;
  /** `envoy.overload_actions.stop_accepting_requests`: requests are answered with 503 and `x-envoy-overloaded`. */
  refusesRequests: boolean;
  /** `envoy.overload_actions.stop_accepting_connections`. */
  refusesConnections: boolean;
  /** `envoy.overload_actions.reset_high_memory_stream`: streams with the most bytes that wait for a slow reader are reset. */
  resetsStreams: boolean;
  /** `envoy.resource_monitors.global_downstream_max_connections`; Infinity: no limit. */
  maxConnections: number;
  connections: number;
  /** A burst must not use up the memory between two regular looks at it. */
  check: () => void;
  #accepted: number;
  #requests: number;
  /** For a socket's close event. */
  readonly connectionClosed: () => void;

  constructor(maxConnections: number) {
    this.disablesKeepAlive = false;
    this.refusesRequests = false;
    this.refusesConnections = false;
    this.resetsStreams = false;
    this.maxConnections = maxConnections;
    this.connections = 0;
    this.check = () => {};
    this.#accepted = 0;
    this.#requests = 0;
    this.connectionClosed = () => {
      this.connections--;
    };
  }

  /** Counts a connection and says whether it may stay; one that may not is not counted. */
  acceptsConnection(): boolean {
    if ((++this.#accepted & (connectionsPerCheck - 1)) === 0) this.check();
    if (this.refusesConnections || this.connections >= this.maxConnections) return false;
    this.connections++;
    return true;
  }

  acceptsRequest(): boolean {
    if ((++this.#requests & (requestsPerCheck - 1)) === 0) this.check();
    return !this.refusesRequests;
  }
}
