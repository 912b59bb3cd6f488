// Longer than other files: a request's life is one state machine, whose fields are nobody else's. What needs none of them is in files of its
// own (mirrors, hedging, rewriting, retry conditions, replies, records).

import { type ErrorBoundary, errorBoundary } from '@mizzen/common';
import { requestSubject, type Subject } from '../authorization/subject.ts';
import type { SecretsInQuery } from '../filters/filter.ts';
import type { Violation } from '../http1/violation.ts';
import { violations } from '../http1/violation.ts';
import { connectionSpecificNames, type Fields, noFields } from '../message/fields.ts';
import { KeptSlices, pushSlice } from '../message/kept-slices.ts';
import type { RequestHead } from '../message/request-head.ts';
import { ResponseHead } from '../message/response-head.ts';
import { normalizeTarget, settleTarget } from '../route/normalize-path.ts';
import { pathViews } from '../route/path-views.ts';
import type { ForwardAction, RedirectAction, RetryPolicy, Route, Target } from '../route/route.ts';
import type { VirtualHost } from '../route/route-table.ts';
import type { LoggedStream } from '../telemetry/access-log.ts';
import { type PeerMetadata, peerMetadataHeader, peerMetadataIdHeader, unknownPeer } from '../telemetry/peer-metadata.ts';
import type { RequestSpan } from '../telemetry/tracing/tracer.ts';
import type { EarlierTries } from '../upstream/balancing/host-set.ts';
import type { Cluster } from '../upstream/cluster.ts';
import type { ConnectionWaiter, Endpoint } from '../upstream/endpoint.ts';
import { detailText, type UpstreamFailure, type UpstreamStream } from '../upstream/upstream-stream.ts';
import type { ConnectionSettings } from './connection-settings.ts';
import type { Downstream } from './downstream.ts';
import { applyForwardingHeaders } from './forwarding-headers.ts';
import { grpcStatus, grpcStatusOfHttp, grpcTimeoutMs, httpStatusOfGrpc, isGrpcRequest } from './grpc.ts';
import { HedgedAttempt, type HedgingExchange } from './hedged-attempt.ts';
import { httpDate } from './http-date.ts';
import { grpcReply, plainReply } from './local-reply.ts';
import { InvalidContent, type MessageTransform } from './message-transform.ts';
import { MirrorRequest } from './mirror-request.ts';
import { recordRequest } from './record-request.ts';
import { isRetriableAnswer, isRetriableFailure } from './retry-conditions.ts';
import { redirectLocation, rewriteTarget, rewrittenHost } from './rewrite-path.ts';

/** Request bodies up to this size are kept until the response begins, so that the request can be sent again. */
const replayLimitBytes = 64 * 1024;

const noBody = Buffer.alloc(0);

/** What a local reply says of its own framing and connection is not for filters and services to add to. */
const framesMessage = (name: string) => name === 'content-length' || name === 'trailer' || connectionSpecificNames.has(name);

/** Every way into an exchange: what throws behind one ends the exchange, and neither its connection's other requests nor the upstream's. */
const boundaries = {
  start: errorBoundary('request.start'),
  resumeFilters: errorBoundary('request.resumeFilters'),
  onConnection: errorBoundary('request.onConnection'),
  onEndpointRemoved: errorBoundary('request.onEndpointRemoved'),
  onRequestData: errorBoundary('request.onRequestData'),
  onRequestEnd: errorBoundary('request.onRequestEnd'),
  onInformational: errorBoundary('request.onInformational'),
  onResponseHead: errorBoundary('request.onResponseHead'),
  onResponseData: errorBoundary('request.onResponseData'),
  onResponseEnd: errorBoundary('request.onResponseEnd'),
  onUpstreamFailure: errorBoundary('request.onUpstreamFailure'),
  onTunnel: errorBoundary('request.onTunnel'),
  timer: errorBoundary('request.timer'),
  filter: errorBoundary('request.filter'),
  record: errorBoundary('request.record'),
};

/** RFC 9457; `errors` says what is wrong with single parts of a request. */
export interface Problem {
  readonly title: string;
  readonly detail: string;
  readonly errors?: readonly { readonly pointer?: string; readonly parameter?: string; readonly detail: string }[];
}

/** Somebody who has proved who they are with a credential of an API. */
export interface Consumer {
  readonly name: string;
  readonly groups: readonly string[];
  /** Of a token; empty for other credentials. */
  readonly claims: Readonly<Record<string, unknown>>;
}

/** Sees the server's answer before anything is done to it. */
export interface ResponseObserver {
  onHead(head: ResponseHead): void;
  onData(slice: Buffer): void;
  /** The answer is whole. Not called for one that broke off. */
  onEnd(): void;
}
/** A request that servers do not look at is sent again so many times. */
const maxRefusals = 5;
/** Interim responses (1xx) to one request. */
const maxInterimHeads = 32;

/**
 * One request and its response: filters, route, cluster, endpoint, and back. It is the receiver of the upstream's events and of the
 * client's body, and knows no version of HTTP: those are behind `Downstream` and `UpstreamStream`.
 */
export class Exchange implements HedgingExchange, ConnectionWaiter, LoggedStream {
  readonly downstream: Downstream;
  readonly settings: ConnectionSettings;
  readonly head: RequestHead;
  route: Route | undefined;
  virtualHost: VirtualHost | undefined;
  cluster: Cluster | undefined;
  endpoint: Endpoint | undefined;
  /** Who the peer says it is (inbound, mutual TLS only). */
  peerMetadata: PeerMetadata;
  responseCode: number;
  /** The client expects what gRPC expects: a status of gRPC, whatever happens. */
  isGrpc: boolean;
  /** `grpc-status` of the answer; '' while there is none. */
  grpcStatus: string;
  responseDetails: string;
  bytesReceived: number;
  bytesSent: number;
  upstreamServiceTimeMs: number;
  durationMs: number;
  readonly startedAt: number;
  readonly originalPath: string;
  readonly #startedAt: number;
  #flags: string;
  #filterIndex: number;
  /** What the request asks for besides an answer. */
  #tunnel: 'no' | 'upgrade' | 'connect';
  /** Bytes go through as they are, in both directions. */
  #isTunnel: boolean;
  /** The endpoint in whose queue this request stands. */
  #queuedAt: Endpoint | undefined;
  /** The last failure was of a connection that had served others: the next one must be new. */
  #needsFreshConnection: boolean;
  /** How often a server has said that it has not looked at the request. */
  #refusals: number;
  #target: Target | undefined;
  /** What the route has made of the request, for clusters that choose by it. */
  #hash: bigint | undefined;
  /** The client is given a cookie, so that its next requests go to the same endpoint. */
  #stickyCookie: string | undefined;
  #upstream: UpstreamStream | undefined;
  /** The current attempt, and those that run beside it, where the route hedges. */
  #hedged: HedgedAttempt | undefined;
  #parked: Set<HedgedAttempt> | undefined;
  /** A filter's changes to the content. */
  #transform: MessageTransform | undefined;
  /** A filter that waits for the whole of the request's content. */
  #collector: { readonly limitBytes: number; readonly takesPart: boolean; readonly done: (body: Buffer) => void } | undefined;
  #observer: ResponseObserver | undefined;
  #responseHold: ((head: ResponseHead, release: () => void) => void) | undefined;
  /** What comes behind a head that a filter holds. */
  #held: { readonly head: ResponseHead; readonly hasBody: boolean; readonly slices: Buffer[]; trailers: Fields | undefined } | undefined;
  /** What filters remember of this request, by their names; made when the first one does. */
  #notes: Map<string, unknown> | undefined;
  #metadata: Map<string, Readonly<Record<string, unknown>>> | undefined;
  /** Who calls, as a filter has proved; undefined: nobody has. */
  consumer: Consumer | undefined;
  /** What is said of this request in its trace; undefined: it is in none. */
  span: RequestSpan | undefined;
  /** Body slices that have arrived so far; undefined once they are no longer needed or no longer complete. */
  #replay: KeptSlices | undefined;
  #replayBytes: number;
  #requestTrailers: Fields;
  #isForwarding: boolean;
  #requestEnded: boolean;
  #responseHead: ResponseHead | undefined;
  #headSent: boolean;
  #isFinished: boolean;
  #headIsHeld: boolean;
  #interimHeads: number;
  /** An exception is being turned into a response. */
  #isFailing: boolean;
  #attempts: number;
  #attemptStartedAt: number;
  /** The cluster that a retry under way counts with. */
  #retryingTo: Cluster | undefined;
  /** Endpoints that were tried before this one, where that matters. */
  #tries: (EarlierTries & { readonly endpoints: Endpoint[] }) | undefined;
  #mirrors: MirrorRequest[] | undefined;
  #timer: NodeJS.Timeout | undefined;
  #timeoutTimer: NodeJS.Timeout | undefined;
  #perTryTimer: NodeJS.Timeout | undefined;

  constructor(downstream: Downstream, settings: ConnectionSettings, head: RequestHead) {
    this.downstream = downstream;
    this.settings = settings;
    this.head = head;
    this.route = undefined;
    this.virtualHost = undefined;
    this.cluster = undefined;
    this.endpoint = undefined;
    this.peerMetadata = unknownPeer;
    this.responseCode = 0;
    this.isGrpc = head.method === 'POST' && isGrpcRequest(head);
    this.grpcStatus = '';
    this.responseDetails = '';
    this.bytesReceived = 0;
    this.bytesSent = 0;
    this.upstreamServiceTimeMs = -1;
    this.durationMs = 0;
    this.startedAt = performance.timeOrigin + downstream.lastReadAt;
    this.originalPath = head.target;
    this.#startedAt = downstream.lastReadAt;
    this.#flags = '';
    this.#filterIndex = 0;
    this.#tunnel = 'no';
    this.#isTunnel = false;
    this.#queuedAt = undefined;
    this.#needsFreshConnection = false;
    this.#refusals = 0;
    this.#target = undefined;
    this.#hash = undefined;
    this.#stickyCookie = undefined;
    this.#upstream = undefined;
    this.#hedged = undefined;
    this.#parked = undefined;
    this.#transform = undefined;
    this.#collector = undefined;
    this.#observer = undefined;
    this.#responseHold = undefined;
    this.#held = undefined;
    this.#notes = undefined;
    this.#metadata = undefined;
    this.consumer = undefined;
    this.span = undefined;
    this.#replay = undefined;
    this.#replayBytes = 0;
    this.#requestTrailers = noFields;
    this.#isForwarding = false;
    this.#requestEnded = !head.hasBody;
    this.#responseHead = undefined;
    this.#headSent = false;
    this.#isFinished = false;
    this.#headIsHeld = false;
    this.#interimHeads = 0;
    this.#isFailing = false;
    this.#attempts = 0;
    this.#attemptStartedAt = 0;
    this.#retryingTo = undefined;
    this.#tries = undefined;
    this.#mirrors = undefined;
    this.#timer = undefined;
    this.#timeoutTimer = undefined;
    this.#perTryTimer = undefined;
    const { values } = settings.context.counters;
    values.downstream_requests_total++;
    values.downstream_requests_active++;
  }

  // ---- what an access log line says ----

  get method(): string {
    return this.head.method;
  }
  get path(): string {
    return this.head.target;
  }
  /** Only for lines whose path has a query. */
  get secretParameters(): readonly string[] {
    const ofRoute = [...(this.route?.filterConfigs?.values() ?? []), ...(this.#target?.filterConfigs?.values() ?? [])] as readonly SecretsInQuery[];
    return [...this.settings.filters, ...ofRoute].flatMap(({ secretParameters }: SecretsInQuery) => secretParameters ?? []);
  }
  get protocol(): string {
    return this.head.isHttp2 ? 'HTTP/2' : this.head.isHttp10 ? 'HTTP/1.0' : 'HTTP/1.1';
  }
  get authority(): string {
    return this.head.authority;
  }
  get responseFlags(): string {
    return this.#flags === '' ? '-' : this.#flags;
  }
  get upstreamHost(): string {
    return this.endpoint?.text ?? '';
  }
  get upstreamCluster(): string {
    return this.cluster?.name ?? (this.#target === undefined ? '' : this.#clusterName(this.#target));
  }
  get routeName(): string {
    return this.route?.name ?? '';
  }
  get peerUri(): string {
    return this.downstream.client.peer?.uri ?? '';
  }
  get remoteAddress(): string {
    return this.downstream.client.info.remoteAddress;
  }
  get remotePort(): number {
    return this.downstream.client.info.remotePort;
  }
  get localAddress(): string {
    return this.downstream.client.info.localAddress;
  }
  get localPort(): number {
    return this.downstream.client.info.localPort;
  }
  get serverName(): string {
    return this.downstream.client.info.serverName;
  }
  requestHeader(name: string): string | undefined {
    return this.head.headers.get(name);
  }
  responseHeader(name: string): string | undefined {
    return this.#responseHead?.headers.get(name);
  }

  // ---- the way in: filters, route ----

  get isHeadRequest(): boolean {
    return this.head.method === 'HEAD';
  }

  /** Content of the request that is held for a filter, or to be sent again. */
  get heldRequestBytes(): number {
    return this.#replay === undefined ? 0 : this.#replayBytes;
  }

  get pendingResponseBytes(): number {
    return this.downstream.heldBytes;
  }

  get isTunnelRequest(): 'no' | 'upgrade' | 'connect' {
    return this.#tunnel;
  }

  /** Bytes are carried as they are: no request of this connection will follow. */
  get isTunnel(): boolean {
    return this.#isTunnel;
  }

  get isRequestComplete(): boolean {
    return this.#requestEnded;
  }

  /** Its answer is given, or it has been broken off. */
  get isOver(): boolean {
    return this.#isFinished;
  }

  /** In the milliseconds of performance.now(). */
  get beganAt(): number {
    return this.#startedAt;
  }

  start(): void {
    try {
      boundaries.start.enter();
      this.#start();
    } catch (error) {
      this.#failed(error, boundaries.start);
    }
  }

  #start(): void {
    const { head, settings } = this;
    if (!this.#requestEnded) this.#replay = new KeptSlices();
    if (!settings.context.overload.acceptsRequest()) return this.#refuseForOverload();
    if (head.upgrade !== '' && !this.#acceptsUpgrade()) return;
    this.peerMetadata = applyForwardingHeaders(head, this.downstream.client, settings);
    if (settings.tracer !== undefined) this.span = settings.tracer.begin(this);
    if (head.method !== 'CONNECT' && !this.#normalizePath()) return;
    if (head.authority === '') return this.#refuseRequest(400, 'the request names no host', 'missing_host');
    const table = settings.routeTable();
    this.virtualHost = table?.findHost(head.authority);
    if (this.virtualHost?.requiresTls && !settings.isTls) return this.#redirectTo(301, `https://${head.authority}${head.target}`);
    this.#findRoute();
    if (this.virtualHost?.hasFilterConfigs && !this.#isUnambiguous(this.virtualHost)) return;
    this.resumeFilters();
  }

  #findRoute(): void {
    this.route = this.virtualHost?.find(this.head, this);
    const action = this.route?.action;
    this.#target = action?.kind === 'forward' ? action.targets.pick(this.settings.context.random) : undefined;
  }

  /** False: the service could read the path as one of another route, with other policies, and the request is refused. */
  #isUnambiguous(host: VirtualHost): boolean {
    const { head } = this;
    const { target } = head;
    const query = target.indexOf('?');
    const views = pathViews(query < 0 ? target : target.slice(0, query));
    if (views === undefined) return true;
    let isSame = true;
    for (const path of views.structural) {
      head.target = query < 0 ? path : path + target.slice(query);
      const other = host.find(head, this);
      isSame &&= other === this.route || (other?.filterConfigs === undefined && this.route?.filterConfigs === undefined);
    }
    head.target = target;
    if (!isSame)
      this.#refuseRequest(400, 'the path is ambiguous: without its parameters (;) or with its slashes decoded it belongs to another route', 'ambiguous_path');
    return isSame;
  }

  /** A filter has found out what routes may match on: the route is looked for anew. */
  clearRoute(): void {
    this.#findRoute();
  }

  /** False: it is answered. */
  #normalizePath(): boolean {
    const { head, settings } = this;
    const settled = settings.paths === undefined ? undefined : settleTarget(head.target, settings.paths);
    const target = settings.paths === undefined ? normalizeTarget(head.target) : settled?.target;
    if (target === undefined)
      this.#refuseRequest(400, 'the path leads out of the root, or holds what is not taken here (an encoded NUL or slash)', 'path_normalization_failed');
    else if (settled?.isRedirect) this.#redirectTo(307, target);
    else this.retarget(target);
    return target !== undefined && settled?.isRedirect !== true;
  }

  /** Runs the filters that have not run yet, then forwards. */
  resumeFilters(): void {
    try {
      boundaries.resumeFilters.enter();
      this.#runFilters();
    } catch (error) {
      this.#failed(error, boundaries.resumeFilters);
    }
  }

  #runFilters(): void {
    const { filters } = this.settings;
    while (this.#filterIndex < filters.length && !this.#isFinished) {
      const filter = filters[this.#filterIndex++]!;
      if (filter.onRequest !== undefined && filter.onRequest(this) === 'stop') {
        if (!this.#isFinished && !this.#requestEnded && this.#collector === undefined) this.downstream.pauseRequest();
        return;
      }
    }
    if (this.#isFinished) return;
    // Only now: filters may turn away whom nothing here is for, too.
    if (this.route === undefined) return this.reply(404, '', 'NR', 'route_not_found');
    const { action } = this.route;
    if (action.kind === 'redirect') return this.#redirect(action);
    if (action.kind === 'direct') return this.#replyWith(action.status, action.body, 'text/plain', '', 'direct_response', noFields, undefined, this.route);
    this.#prepare(action);
  }

  /** What the route says to the filter of this name; undefined: nothing. */
  filterConfig(name: string): unknown {
    return this.#target?.filterConfigs?.get(name) ?? this.route?.filterConfigs?.get(name);
  }

  /** What the filter of this name has noted of this request. */
  note(name: string): unknown {
    return this.#notes?.get(name);
  }

  setNote(name: string, value: unknown): void {
    (this.#notes ??= new Map()).set(name, value);
  }

  /** What the filter of this name has found out for others to match on (envoy "dynamic metadata"). */
  metadata(filter: string): Readonly<Record<string, unknown>> | undefined {
    return this.#metadata?.get(filter);
  }

  addMetadata(filter: string, values: Readonly<Record<string, unknown>>): void {
    this.#metadata ??= new Map();
    this.#metadata.set(filter, { ...this.#metadata.get(filter), ...values });
  }

  /** Whom rules of authorization are asked about. */
  authorizationSubject(): Subject {
    const { info, peer } = this.downstream.client;
    return requestSubject(this.head, info, peer, (filter) => this.#metadata?.get(filter));
  }

  /**
   * Waits for the whole of the request's content and gives it to `done`; the filter says `stop` meanwhile. Content beyond `limitBytes` is
   * answered with 413, or (`takesPart`) is left out of what `done` is given.
   */
  collectRequest(limitBytes: number, done: (body: Buffer) => void, takesPart = false): void {
    const { head } = this;
    if (head.contentLength > limitBytes && !takesPart) return this.#tooLarge(limitBytes);
    if (this.#requestEnded) return done(this.#collected());
    this.#collector = { limitBytes, takesPart, done };
    if (head.expectsContinue) {
      head.expectsContinue = false;
      head.headers.remove('expect');
      const goOn = new ResponseHead();
      goOn.status = 100;
      this.downstream.informational(goOn);
    }
    this.downstream.resumeRequest();
  }

  #collected(): Buffer {
    const slices = this.#replay?.slices ?? [];
    const body = slices.length === 1 ? slices[0]! : Buffer.concat(slices);
    if (slices.length > 1) this.#replay = new KeptSlices(body);
    return body;
  }

  #tooLarge(limitBytes: number): void {
    this.#collector = undefined;
    this.downstream.makeLast();
    this.replyProblem(413, { title: 'Content Too Large', detail: `the request's content may have ${limitBytes} bytes` }, 'content_too_large');
  }

  /** Sends this content instead of what has been collected. */
  replaceRequestBody(body: Buffer): void {
    const { head } = this;
    this.#replay = new KeptSlices(body);
    this.#replayBytes = body.length;
    head.isChunked = false;
    head.contentLength = body.length;
    head.headers.set('content-length', String(body.length));
  }

  /**
   * Has the server's answer wait: `look` is given its head, may change it, and calls `release` then or later. One filter may. Answers of the
   * proxy's own do not wait.
   */
  holdResponse(look: (head: ResponseHead, release: () => void) => void): void {
    this.#responseHold = look;
  }

  /** Shows the server's answer, as it came, to somebody who wants to keep it. One may. */
  observeResponse(observer: ResponseObserver): void {
    this.#observer = observer;
  }

  /** Has the content of request and answer changed on its way. Called by a filter before anything was forwarded; one may. */
  transformWith(transform: MessageTransform): void {
    this.#transform = transform;
  }

  get isTransformed(): boolean {
    return this.#transform !== undefined;
  }

  /** One timer that a filter may use; cleared when the exchange ends. */
  setTimer(ms: number, callback: () => void): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (!this.#isFinished) this.runGuarded(callback);
    }, ms);
  }

  addFlag(flag: string): void {
    this.#flags = this.#flags === '' ? flag : `${this.#flags},${flag}`;
  }

  // ---- forwarding ----

  #prepare(action: ForwardAction): void {
    const { head, settings } = this;
    const { random } = settings.context;
    const target = this.#target!;
    this.cluster = settings.context.findCluster(this.#clusterName(target));
    if (this.cluster === undefined)
      return this.reply(action.clusterNotFoundStatus, 'no cluster: the route points to a destination that is not known here', 'NC', 'cluster_not_found');
    if (head.method === 'CONNECT') this.#tunnel = 'connect';
    if (this.#tunnel !== 'no' && !this.#tunnelIsEnabled(action)) {
      this.#tunnel = 'no';
      return this.reply(403, '', 'NR', 'upgrade_failed');
    }
    if (target.requestHeaders !== undefined) {
      target.requestHeaders.apply(head.headers, this);
      if (target.requestHeaders.changesHost) head.authority = head.headers.get('host') ?? head.authority;
    }
    if (target.hostRewrite !== undefined) this.#tellHost(target.hostRewrite, false);
    const host = action.hostRewrite && rewrittenHost(action.hostRewrite, head);
    if (host !== undefined) this.#tellHost(host, action.tellsHost);
    if (action.rewrite !== undefined) {
      this.retarget(rewriteTarget(head.target, action.rewrite));
      head.headers.set('x-envoy-original-path', this.originalPath);
    }
    if (head.expectsContinue && !settings.passesContinue) head.headers.remove('expect');
    if (action.hash !== undefined)
      this.#hash = action.hash.of(head, this.downstream.client.info, (cookie) => {
        this.#stickyCookie = cookie;
      });
    const timeoutMs = this.#timeoutOf(action);
    if (timeoutMs > 0) this.#timeoutTimer = setTimeout(() => this.runGuarded(() => this.#timedOut()), timeoutMs);
    for (const mirror of action.mirrors) {
      const cluster = mirror.share >= 1 || random() < mirror.share ? settings.context.findCluster(this.#clusterName(mirror)) : undefined;
      if (cluster !== undefined) (this.#mirrors ??= []).push(new MirrorRequest(cluster, head, this.downstream.client.info, mirror.marksHost));
    }
    if (head.expectsContinue && !settings.passesContinue) {
      const goOn = new ResponseHead();
      goOn.status = 100;
      this.downstream.informational(goOn);
    }
    this.#attempt();
  }

  /** Of a target that says it, or leaves it to a header of the request. */
  #clusterName({ cluster, clusterHeader }: { readonly cluster: string; readonly clusterHeader: string }): string {
    return clusterHeader === '' ? cluster : (this.head.headers.get(clusterHeader) ?? '');
  }

  /** Names another host to the upstream. */
  #tellHost(host: string, tellsBefore: boolean): void {
    const { head } = this;
    if (tellsBefore) {
      const before = head.headers.getJoined('x-forwarded-host');
      head.headers.set('x-forwarded-host', before === undefined ? head.authority : `${before},${head.authority}`);
    }
    head.authority = host;
    head.headers.set('host', host);
  }

  /** Sends the request to another target than the client has named. */
  retarget(target: string): void {
    const { head } = this;
    if (target === head.target) return;
    head.target = target;
    head.line = '';
  }

  /** The route's timeout; for gRPC, where the route says so, the caller's own, but no longer than the route allows. */
  #timeoutOf(action: ForwardAction): number {
    if (!this.isGrpc || action.maxGrpcTimeoutMs === undefined) return action.timeoutMs;
    const asked = grpcTimeoutMs(this.head);
    if (asked === undefined) return action.maxGrpcTimeoutMs > 0 ? action.maxGrpcTimeoutMs : action.timeoutMs;
    return action.maxGrpcTimeoutMs > 0 ? Math.min(asked, action.maxGrpcTimeoutMs) : asked;
  }

  #attempt(): void {
    const cluster = this.cluster!;
    if (cluster.activeRequests >= cluster.settings.maxRequests)
      return this.reply(503, 'the limit of requests to this destination is reached', 'UO', 'overflow');
    const endpoint = cluster.endpointFor(this.downstream.client.info, this.head.authority, this.#tries, this.#hash);
    if (endpoint === undefined) return this.reply(503, 'no healthy upstream', 'UH', 'no_healthy_upstream');
    const notReady = endpoint.transport.notReadyReason;
    if (notReady !== undefined) return this.reply(503, `upstream connect error: ${notReady}`, 'UF', 'upstream_tls_not_ready');
    this.endpoint = endpoint;
    if (this.#tunnel === 'connect' && (this.downstream.saidConnected || (this.route!.action as ForwardAction).terminatesConnect))
      return this.#openTunnel(endpoint);
    const acquired = cluster.acquire(endpoint, this, this.downstream.client.info, this.head.isHttp2, this.#needsFreshConnection);
    if (acquired === 'overflow')
      return this.reply(503, 'the limit of connections to this destination, and of requests that wait for one, is reached', 'UO', 'overflow');
    if (acquired === 'queued') this.#queuedAt = endpoint;
    else this.onConnection(acquired);
  }

  /** A connection that this request stood in the queue for, or did not have to. */
  onConnection(upstream: UpstreamStream): void {
    try {
      boundaries.onConnection.enter();
      this.#beginAttempt(upstream);
    } catch (error) {
      // Before the exchange owned it, the connection would otherwise be neither used nor idle.
      if (this.#upstream !== upstream) boundaries.onConnection.run(() => upstream.abandon());
      this.#failed(error, boundaries.onConnection);
    }
  }

  #beginAttempt(upstream: UpstreamStream): void {
    const endpoint = this.endpoint!;
    this.#queuedAt = undefined;
    this.#beginOn(upstream);
    if (this.virtualHost!.countsAttempts) this.head.headers.set('x-envoy-attempt-count', String(this.#attempts));
    const { hedge, retry } = this.route!.action as ForwardAction;
    const receiver = hedge === undefined ? this : (this.#hedged = new HedgedAttempt(this, this.cluster!, endpoint, upstream));
    upstream.begin(receiver, this.head, endpoint.transport.isMesh ? this.settings.context.introduction : undefined);
    if (this.#replay !== undefined) for (const slice of this.#replay.slices) this.#sendBody(slice);
    if (this.#requestEnded) upstream.end(this.#requestTrailers);
    else this.downstream.resumeRequest();
    if (retry !== undefined && retry.perTryTimeoutMs > 0)
      this.#perTryTimer = setTimeout(() => this.runGuarded(() => this.#perTryTimedOut(retry)), retry.perTryTimeoutMs);
    if (this.#requestEnded || this.#attempts > 1) upstream.flushSoon();
  }

  onEndpointRemoved(): void {
    try {
      boundaries.onEndpointRemoved.enter();
      this.#chooseAgain();
    } catch (error) {
      this.#failed(error, boundaries.onEndpointRemoved);
    }
  }

  #chooseAgain(): void {
    const cluster = this.cluster!;
    cluster.pendingRequests--;
    this.#queuedAt = undefined;
    if (this.#isFinished) return;
    // The whole cluster may have been replaced by a newer form of itself.
    this.cluster = this.settings.context.findCluster(cluster.name) ?? cluster;
    this.#attempt();
  }

  /** The connection counts, and so does the time, from now on. */
  #beginOn(upstream: UpstreamStream): void {
    const cluster = this.cluster!;
    this.#upstream = upstream;
    this.#attempts++;
    this.#attemptStartedAt = this.#attempts === 1 && this.#timer === undefined ? this.#startedAt : performance.now();
    cluster.activeRequests++;
    cluster.counters.upstreamRqTotal++;
    this.endpoint!.activeRequests++;
    this.#isForwarding = true;
  }

  #sendBody(slice: Buffer): void {
    const upstream = this.#upstream!;
    upstream.data(slice);
    if (!upstream.isWritable) this.downstream.pauseRequest();
  }

  onRequestData(received: Buffer): void {
    try {
      boundaries.onRequestData.enter();
      this.#takeRequestData(received);
    } catch (error) {
      this.#failed(error, boundaries.onRequestData);
    }
  }

  #takeRequestData(received: Buffer): void {
    this.bytesReceived += received.length;
    if (this.#isFinished) return;
    const slice = this.#transform === undefined || this.#isTunnel ? received : this.#transformed(() => this.#transform!.requestData(received));
    if (slice === undefined || slice.length === 0) return;
    const collector = this.#collector;
    if (collector !== undefined && this.#replayBytes + slice.length > collector.limitBytes) {
      if (!collector.takesPart) return this.#tooLarge(collector.limitBytes);
      this.#collector = undefined;
      this.#replayBytes += slice.length;
      this.#replay!.push(slice);
      this.downstream.pauseRequest();
      return collector.done(this.#collected().subarray(0, collector.limitBytes));
    }
    if (this.#replay !== undefined) {
      this.#replayBytes += slice.length;
      if (this.#replayBytes <= replayLimitBytes || !this.#isForwarding) this.#replay.push(slice);
      else this.#replay = undefined; // too much to keep: this request can no longer be repeated
    }
    if (this.#mirrors !== undefined) for (const mirror of this.#mirrors) mirror.data(slice);
    if (this.#isForwarding) this.#sendBody(slice);
    else if (this.#replayBytes > replayLimitBytes && this.#collector === undefined) this.downstream.pauseRequest();
  }

  onRequestEnd(trailers: Fields): void {
    try {
      boundaries.onRequestEnd.enter();
      this.#takeRequestEnd(trailers);
    } catch (error) {
      this.#failed(error, boundaries.onRequestEnd);
    }
  }

  #takeRequestEnd(trailers: Fields): void {
    if (this.#requestEnded) return;
    if (this.#transform !== undefined && !this.#isFinished) {
      const rest = this.#transformed(() => this.#transform!.requestEnd());
      if (rest === undefined) return;
      if (rest.length > 0) {
        this.#replay?.push(rest);
        if (this.#isForwarding) this.#sendBody(rest);
      }
    }
    this.#requestEnded = true;
    this.#requestTrailers = trailers;
    if (this.#collector !== undefined) {
      const { done } = this.#collector;
      this.#collector = undefined;
      if (!this.#isFinished) done(this.#collected());
      return;
    }
    if (this.#mirrors !== undefined) for (const mirror of this.#mirrors) mirror.end(trailers);
    if (this.#isForwarding && !this.#isFinished) this.#upstream!.end(trailers);
  }

  /** undefined: the content makes no sense, and the request has been answered so. */
  #transformed(change: () => Buffer): Buffer | undefined {
    try {
      return change();
    } catch (error) {
      if (!(error instanceof InvalidContent)) throw error;
      this.#refuseRequest(400, error.message, 'invalid_content');
      return undefined;
    }
  }

  onRequestFlush(): void {
    if (this.#isForwarding && !this.#isFinished) this.#upstream?.flushSoon();
  }

  onRequestViolation(violation: Violation): void {
    this.settings.context.counters.countViolation(violation.reason);
    this.downstream.makeLast();
    if (this.#headSent) return this.#breakOff('DPE');
    this.reply(violation.status, violation.reason, 'DPE', violation.reason);
  }

  // ---- the way back ----

  onInformational(head: ResponseHead): void {
    try {
      boundaries.onInformational.enter();
      this.#takeInformational(head);
    } catch (error) {
      this.#failed(error, boundaries.onInformational);
    }
  }

  #takeInformational(head: ResponseHead): void {
    // They are not held back by what the client takes: a server must not be able to send them without end.
    if (++this.#interimHeads > maxInterimHeads) {
      this.#dropUpstream();
      this.cluster!.countViolation('too_many_interim_responses');
      return this.reply(
        502,
        'upstream connect error or disconnect/reset before headers. reset reason: protocol error, too_many_interim_responses',
        'UPE',
        'upstream_protocol_error',
      );
    }
    // Unless it is passed on, 100 Continue was answered when the request arrived; other interim responses go on to clients that know them.
    if ((head.status !== 100 || this.settings.passesContinue) && !this.#headSent) this.downstream.informational(head);
  }

  onResponseHead(head: ResponseHead, hasBody: boolean): void {
    try {
      boundaries.onResponseHead.enter();
      this.#judgeResponseHead(head, hasBody);
    } catch (error) {
      this.#failed(error, boundaries.onResponseHead);
    }
  }

  #judgeResponseHead(head: ResponseHead, hasBody: boolean): void {
    if (this.endpoint!.outlier !== undefined) this.#judge(head.status, head.headers.get('grpc-status'));
    const retry = this.#retryPolicy();
    if (retry !== undefined && isRetriableAnswer(head, retry, this.isGrpc)) {
      if (this.#retry(retry, 'URX')) return;
      if (this.#waitsForParked) return this.#dropUpstream();
    }
    clearTimeout(this.#perTryTimer);
    this.#endRetry();
    this.#replay = undefined;
    if (this.#parked !== undefined) for (const attempt of this.#parked) attempt.abandon();
    if (this.#responseHold === undefined) return this.#takeResponseHead(head, hasBody);
    const look = this.#responseHold;
    this.#responseHold = undefined;
    this.#held = { head, hasBody, slices: [], trailers: undefined };
    this.#upstream?.pause();
    look(head, () => this.#releaseResponse());
  }

  /** Tells outlier detection how the endpoint has answered; gRPC says it later, unless its answer is but a head. */
  #judge(status: number, grpc: string | undefined): void {
    if (!this.isGrpc || status !== 200) this.endpoint!.outlier!.onStatus(status);
    else if (grpc !== undefined && grpc !== '') this.endpoint!.outlier!.onStatus(httpStatusOfGrpc(Number(grpc)));
  }

  #releaseResponse(): void {
    const held = this.#held;
    if (held === undefined || this.#isFinished) return;
    this.#held = undefined;
    this.#takeResponseHead(held.head, held.hasBody);
    for (const slice of held.slices) this.onResponseData(slice);
    if (held.trailers !== undefined) this.onResponseEnd(held.trailers);
    else {
      this.#upstream?.resume();
      this.downstream.flushSoon();
    }
  }

  #takeResponseHead(head: ResponseHead, hasBody: boolean): void {
    this.#responseHead = head;
    this.responseCode = head.status;
    this.responseDetails = 'via_upstream';
    this.upstreamServiceTimeMs = Math.round(performance.now() - this.#attemptStartedAt);
    const { headers } = head;
    if (headers.hasWatchedNames) {
      headers.remove(peerMetadataHeader);
      headers.remove(peerMetadataIdHeader);
      headers.remove('x-envoy-upstream-service-time');
    }
    if (this.#stickyCookie !== undefined) headers.add('set-cookie', this.#stickyCookie);
    this.#observer?.onHead(head);
    if (this.virtualHost!.tellsAttempts) headers.set('x-envoy-attempt-count', String(this.#attempts));
    this.#target?.responseHeaders?.apply(headers, this);
    if (this.settings.setsRequestIdInResponse) headers.set('x-request-id', this.head.headers.get('x-request-id') ?? '');
    if (this.isGrpc) this.grpcStatus = headers.get('grpc-status') ?? '';
    this.#headSent = true;
    for (const filter of this.settings.responseFilters) filter.onResponse!(this, head);
    if (this.#transform?.responseHead(head) === 'hold') this.#headIsHeld = true;
    else this.downstream.respond(head, hasBody, this.upstreamServiceTimeMs);
  }

  onResponseData(received: Buffer): void {
    try {
      boundaries.onResponseData.enter();
      this.#takeResponseData(received);
    } catch (error) {
      this.#failed(error, boundaries.onResponseData);
    }
  }

  #takeResponseData(received: Buffer): void {
    if (this.#isFinished) return;
    if (this.#held !== undefined) return pushSlice(this.#held.slices, Buffer.from(received));
    this.#observer?.onData(received);
    if (this.#transform === undefined || this.#isTunnel) return this.#answer(received);
    try {
      this.#answer(this.#transform.responseData(received));
    } catch (error) {
      if (!(error instanceof InvalidContent)) throw error;
      if (!this.#headIsHeld) return this.#breakOff('UPE');
      this.#headSent = false;
      this.reply(502, `upstream: ${error.message}`, 'UPE', 'invalid_content');
    }
  }

  #answer(slice: Buffer): void {
    if (slice.length === 0) return;
    this.bytesSent += slice.length;
    this.downstream.data(slice);
    if (!this.downstream.isWritable) this.#upstream?.pause();
  }

  onResponseEnd(trailers: Fields): void {
    try {
      boundaries.onResponseEnd.enter();
      this.#takeResponseEnd(trailers);
    } catch (error) {
      this.#failed(error, boundaries.onResponseEnd);
    }
  }

  #takeResponseEnd(trailers: Fields): void {
    if (this.#isTunnel) return this.#tunnelEnded();
    this.#leaveEndpoint();
    this.#upstream = undefined;
    if (this.#held !== undefined) {
      this.#held.trailers = trailers;
      return;
    }
    if (this.isGrpc)
      for (const [name, value] of trailers)
        if (name === 'grpc-status') {
          this.grpcStatus = value;
          if (this.endpoint!.outlier !== undefined) this.#judge(200, value);
        }
    this.#observer?.onEnd();
    if (this.#transform === undefined) this.downstream.end(trailers);
    else this.#endTransformed(this.#transform, trailers);
    this.#finish();
    this.downstream.ended();
  }

  #endTransformed(transform: MessageTransform, trailers: Fields): void {
    const head = this.#responseHead!;
    const end = transform.responseEnd(head, trailers);
    if (this.#headIsHeld) {
      this.responseCode = head.status;
      this.downstream.respond(head, end.data.length > 0, this.upstreamServiceTimeMs);
    }
    this.#answer(end.data);
    this.downstream.end(end.trailers);
  }

  onResponseFlush(): void {
    if (!this.#isFinished && this.#held === undefined) this.downstream.flushSoon();
  }

  onDownstreamDrain(): void {
    this.#upstream?.resume();
  }

  onUpstreamDrain(): void {
    this.downstream.resumeRequest();
  }

  onUpstreamFailure(failure: UpstreamFailure): void {
    try {
      boundaries.onUpstreamFailure.enter();
      this.#takeUpstreamFailure(failure);
    } catch (error) {
      this.#failed(error, boundaries.onUpstreamFailure);
    }
  }

  #takeUpstreamFailure(failure: UpstreamFailure): void {
    this.#leaveEndpoint();
    this.#upstream = undefined;
    if (this.#isFinished) return;
    if (this.#isTunnel) {
      this.#requestEnded = true;
      return this.#tunnelEnded();
    }
    const isConnect = failure.kind === 'connect' || failure.kind === 'connectTimeout';
    if (isConnect) this.cluster!.counters.upstreamCxConnectFail++;
    if (this.#headSent) {
      this.responseDetails = 'upstream_reset_after_response_started';
      return this.#breakOff('UC');
    }
    // What the peer says it has not looked at may be sent again whatever it is (RFC 9113 section 8.7), without a policy's leave.
    if (failure.kind === 'refused' && (this.#replay !== undefined || !this.head.hasBody) && this.#refusals++ < maxRefusals) {
      this.#isForwarding = false;
      return this.#attempt();
    }
    // A pooled connection may have been closed by its peer before it saw this request: send it again where that is safe.
    if (failure.wasReused && failure.beforeResponse && !isConnect && !this.#needsFreshConnection && this.#mayRepeat()) {
      this.#needsFreshConnection = true;
      this.#isForwarding = false;
      return this.#attempt();
    }
    this.endpoint!.outlier?.onLocalFailure(failure.kind === 'connectTimeout' ? 504 : 503);
    const retry = this.#retryPolicy();
    if (retry !== undefined && isRetriableFailure(failure, retry, this.#mayRepeat()) && this.#retry(retry, 'URX')) return;
    if (this.#waitsForParked) return;
    const flag = isConnect ? 'UF' : failure.kind === 'protocol' ? 'UPE' : 'UC';
    const details = isConnect ? 'upstream_connect_failure' : failure.kind === 'protocol' ? 'upstream_protocol_error' : 'upstream_reset_before_response_started';
    this.reply(
      failure.kind === 'protocol' ? 502 : 503,
      `upstream connect error or disconnect/reset before headers. reset reason: ${isConnect ? 'connection failure' : failure.kind === 'protocol' ? 'protocol error' : 'connection termination'}, ${failure.detail}`,
      flag,
      failure.certificateProblem === undefined ? details : `${details}{${detailText(failure.certificateProblem)}}`,
    );
  }

  onDownstreamClosed(details = 'downstream_remote_disconnect'): void {
    if (this.#isFinished) return;
    this.addFlag('DC');
    if (this.responseCode === 0) this.responseDetails = details;
    this.#finish();
  }

  /** The whole request has not come within the request timeout. */
  onRequestTimeout(): void {
    this.settings.context.counters.values.timeouts_total++;
    this.downstream.makeLast();
    this.#giveUp(408, 'request timeout', 'DT', 'request_overall_timeout');
  }

  /** The exchange as a whole has taken too long. */
  onMaxDuration(): void {
    this.settings.context.counters.values.timeouts_total++;
    this.downstream.makeLast();
    this.#giveUp(this.#requestEnded ? 504 : 408, 'downstream duration timeout', 'DT', 'max_duration_timeout');
  }

  onStreamIdle(): void {
    this.settings.context.counters.values.timeouts_total++;
    if (this.#headSent) return this.#breakOff('SI');
    this.downstream.makeLast();
    this.reply(408, 'stream timeout', 'SI', 'stream_idle_timeout');
  }

  /** The process is short of memory, and this stream holds a lot of it. */
  onOverload(): void {
    if (this.#headSent) return this.#breakOff('OM');
    this.#refuseForOverload();
  }

  // ---- tunnels ----

  /** Whether a request that asks for another protocol goes on; it has been answered when it does not. */
  #acceptsUpgrade(): boolean {
    const { head } = this;
    const wanted = head.upgrade.toLowerCase();
    // RFC 9110 section 7.8: a server may overlook an Upgrade. HTTP/2 is agreed on by ALPN or not at all (RFC 9113 section 3.1).
    if (head.isHttp10 || wanted.startsWith('h2c') || wanted.startsWith('tls/') || wanted.startsWith('http/')) {
      head.upgrade = '';
      if (!head.isHttp2) return true;
      this.#refuseRequest(501, 'this protocol cannot be switched to', 'http2.unknown_protocol');
      return false;
    }
    if (head.hasBody) {
      // Two parties could disagree on whether the body or the new protocol begins behind the head.
      this.#refuseRequest(violations.upgradeWithBody.status, violations.upgradeWithBody.reason, violations.upgradeWithBody.reason);
      return false;
    }
    this.#tunnel = 'upgrade';
    return true;
  }

  #tunnelIsEnabled(action: ForwardAction): boolean {
    const name = this.#tunnel === 'connect' ? 'connect' : this.head.upgrade.toLowerCase();
    return action.upgrades.get(name) ?? (this.settings.upgrades.has(name) || this.downstream.saidConnected);
  }

  /** CONNECT ends here: what the client sends from now on goes to the endpoint as it is. */
  #openTunnel(endpoint: Endpoint): void {
    const upstream = this.cluster!.openTunnel(endpoint, this.downstream.client.info);
    if (upstream === undefined) return this.reply(503, 'the limit of connections to this destination is reached', 'UO', 'overflow');
    this.#beginOn(upstream);
    upstream.beginTunnel(this);
  }

  onTunnel(head: ResponseHead | undefined): void {
    try {
      boundaries.onTunnel.enter();
      this.#beginTunnel(head);
    } catch (error) {
      this.#failed(error, boundaries.onTunnel);
    }
  }

  #beginTunnel(head: ResponseHead | undefined): void {
    clearTimeout(this.#timeoutTimer);
    clearTimeout(this.#perTryTimer);
    this.#replay = undefined;
    this.#responseHead = head;
    this.responseCode = head?.status ?? 200;
    this.responseDetails = 'via_upstream';
    this.#headSent = true;
    this.#isTunnel = true;
    this.#requestEnded = false;
    this.settings.context.counters.values.tunnels_total++;
    this.downstream.openTunnel(this.head, head);
  }

  /** The client has closed its side of the tunnel. */
  onTunnelEnd(): void {
    this.#requestEnded = true;
    this.#upstream?.endTunnel();
  }

  #tunnelEnded(): void {
    this.downstream.endTunnel();
    if (this.#requestEnded) {
      this.#finish();
      this.downstream.ended();
    }
  }

  // ---- retries and timeouts ----

  /** RFC 9110 section 9.2.2: what may be repeated when nobody knows whether the server has acted on it. */
  #mayRepeat(): boolean {
    const { method } = this.head;
    return (
      (this.#replay !== undefined || !this.head.hasBody) &&
      (method === 'GET' || method === 'HEAD' || method === 'OPTIONS' || method === 'PUT' || method === 'DELETE' || method === 'TRACE')
    );
  }

  #retryPolicy(): RetryPolicy | undefined {
    const action = this.route?.action;
    const retry = action?.kind === 'forward' ? action.retry : undefined;
    return retry === undefined || retry.requests.length === 0 || retry.requests.some((request) => request.matches(this.head)) ? retry : undefined;
  }

  /** Sends the request again after a pause, if there are tries left. */
  #retry(retry: RetryPolicy, exhaustedFlag: string): boolean {
    if (this.head.hasBody && this.#replay === undefined) return false;
    if (this.#attempts > retry.retries) {
      this.addFlag(exhaustedFlag);
      return false;
    }
    this.#endRetry();
    if (!this.cluster!.hasRetriesLeft) return false;
    clearTimeout(this.#perTryTimer);
    this.#dropUpstream();
    this.cluster!.counters.upstreamRqRetry++;
    this.#rememberTry(retry);
    // Full jitter over a doubling interval (Envoy, "x-envoy-max-retries").
    const ceiling = Math.min(retry.backoffMaxMs, retry.backoffBaseMs * 2 ** (this.#attempts - 1));
    this.#retryingTo = this.cluster;
    this.cluster!.activeRetries++;
    this.#isForwarding = false;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      if (!this.#isFinished) this.runGuarded(() => this.#attempt());
    }, this.settings.context.random() * ceiling);
    return true;
  }

  #rememberTry({ avoidsPreviousHosts, avoidsPrioritiesAfter }: RetryPolicy): void {
    if (this.endpoint === undefined || !(avoidsPreviousHosts || avoidsPrioritiesAfter > 0)) return;
    this.#tries ??= { endpoints: [], avoidsEndpoints: avoidsPreviousHosts, avoidsPrioritiesAfter };
    this.#tries.endpoints.push(this.endpoint);
  }

  /** An attempt that takes long goes on by itself, while another is made: as long as there are tries left, whatever they are for. */
  #hedge(attempt: HedgedAttempt, retry: RetryPolicy): void {
    const mayRepeat = this.#requestEnded && (this.#replay !== undefined || !this.head.hasBody);
    if (this.#headSent || !mayRepeat || this.#attempts > retry.retries || !this.cluster!.hasRetriesLeft) return;
    attempt.park();
    (this.#parked ??= new Set()).add(attempt);
    this.#hedged = undefined;
    this.#upstream = undefined;
    this.#retry(retry, 'URX');
  }

  takesAnswerOf(attempt: HedgedAttempt, head: ResponseHead): boolean {
    this.#parked!.delete(attempt);
    const retry = this.#retryPolicy();
    const isGood = retry === undefined || !isRetriableAnswer(head, retry, this.isGrpc);
    // A bad answer is passed on only when nothing better can come any more.
    if (this.#isFinished || this.#headSent || (!isGood && (this.#upstream !== undefined || this.#timer !== undefined || this.#parked!.size > 0))) return false;
    this.#dropUpstream();
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#queuedAt !== undefined) this.cluster!.stopWaiting(this.#queuedAt, this);
    this.#queuedAt = undefined;
    this.cluster = attempt.cluster;
    this.endpoint = attempt.endpoint;
    this.#upstream = attempt.upstream;
    this.#hedged = attempt;
    this.#isForwarding = true;
    return true;
  }

  parkedEnded(attempt: HedgedAttempt): void {
    this.#parked?.delete(attempt);
    const isAlone = this.#parked?.size === 0 && this.#upstream === undefined && this.#timer === undefined && this.#queuedAt === undefined;
    if (isAlone && !this.#isFinished && !this.#headSent)
      this.reply(503, 'upstream connect error or disconnect/reset before headers', 'UC', 'upstream_reset_before_response_started');
  }

  /** Others are under way whose answer may still be good. */
  get #waitsForParked(): boolean {
    return this.#parked !== undefined && this.#parked.size > 0;
  }

  /** A retry counts from its pause until it is known what has come of it. */
  #endRetry(): void {
    if (this.#retryingTo === undefined) return;
    this.#retryingTo.activeRetries--;
    this.#retryingTo = undefined;
  }

  #timedOut(): void {
    this.cluster!.counters.upstreamRqTimeout++;
    if (this.#isForwarding) this.endpoint?.outlier?.onLocalFailure(504);
    this.#giveUp(504, 'upstream request timeout', 'UT', 'upstream_response_timeout', grpcStatus.DEADLINE_EXCEEDED);
  }

  #perTryTimedOut(retry: RetryPolicy): void {
    this.cluster!.counters.upstreamRqTimeout++;
    this.endpoint?.outlier?.onLocalFailure(504);
    if (this.#hedged !== undefined) return this.#hedge(this.#hedged, retry);
    if (this.#headSent || (retry.onReset || retry.on5xx || retry.onGatewayError ? !this.#retry(retry, 'URX') : true))
      this.#giveUp(504, 'upstream request timeout', 'UT', 'upstream_per_try_timeout', grpcStatus.DEADLINE_EXCEEDED);
  }

  #giveUp(status: number, text: string, flag: string, details: string, grpc?: number): void {
    if (this.#headSent) return this.#breakOff(flag);
    this.reply(status, text, flag, details, this.isGrpc ? grpc : undefined);
  }

  /** An answer has begun that cannot be ended as it should. */
  #breakOff(flag: string): void {
    this.addFlag(flag);
    this.#finish();
    this.downstream.abort();
  }

  // ---- answers of the proxy's own ----

  /** Answers the request from here: the upstream, if any, is given up. */
  reply(status: number, text: string, flag: string, details: string, grpc?: number): void {
    this.#replyWith(status, Buffer.from(text), 'text/plain', flag, details, noFields, grpc);
  }

  /** Answers with this text and these fields; gRPC is told the text in its own form. */
  replyWith(status: number, text: string, details: string, fields: Fields): void {
    this.#replyWith(status, Buffer.from(text), 'text/plain', '', details, fields);
  }

  /** Answers with this head and content. */
  replyHead(head: ResponseHead, details: string, body: Buffer = noBody): void {
    this.responseDetails = details;
    this.#answerWith(head, body);
  }

  /** Answers with this content. */
  replyContent(status: number, body: Buffer, contentType: string, details: string, fields: Fields = noFields): void {
    this.#replyWith(status, body, contentType, '', details, fields);
  }

  /** Answers with RFC 9457 problem details. */
  replyProblem(status: number, problem: Problem, details: string, fields: Fields = noFields): void {
    if (this.isGrpc) return this.#replyWith(status, Buffer.from(problem.detail), '', '', details, fields);
    const body = Buffer.from(`${JSON.stringify({ status, ...problem })}\n`);
    this.#replyWith(status, body, 'application/problem+json', '', details, fields);
  }

  #refuseRequest(status: number, text: string, details: string): void {
    this.settings.context.counters.countViolation(details);
    this.downstream.makeLast();
    this.reply(status, text, 'DPE', details);
  }

  #redirect(action: RedirectAction): void {
    const { head } = this;
    const location = redirectLocation(action, head.target, head.authority, head.headers.get('x-forwarded-proto') === 'https');
    this.#redirectTo(action.status, location);
  }

  #redirectTo(status: number, location: string): void {
    this.#replyWith(status, noBody, '', '', 'direct_response', [['location', location]], undefined, this.route);
  }

  #refuseForOverload(): void {
    this.settings.context.counters.values.downstream_requests_overload_rejected_total++;
    this.downstream.makeLast();
    this.#replyWith(503, Buffer.from('envoy overloaded'), 'text/plain', 'OM', 'overload', [['x-envoy-overloaded', 'true']]);
  }

  #replyWith(status: number, body: Buffer, contentType: string, flag: string, details: string, extra: Fields, grpc?: number, ofRoute?: Route): void {
    if (this.#isFinished) return;
    this.#dropUpstream();
    if (flag !== '') this.addFlag(flag);
    this.responseDetails = details;
    if (this.head.method === 'CONNECT' && this.downstream.saidConnected) {
      // Too late to say it: the client takes whatever comes for the server's own bytes.
      this.responseCode = status;
      this.#finish();
      return this.downstream.abort();
    }
    let head: ResponseHead;
    if (this.isGrpc) {
      const code = grpc ?? grpcStatusOfHttp(status);
      this.grpcStatus = String(code);
      head = grpcReply(code, body.toString(), this.#transform?.contentType);
    } else head = plainReply(status, body, contentType);
    // A redirect or direct answer has its route's headers, but not what a filter says in its place.
    (this.#target ?? ofRoute)?.responseHeaders?.apply(head.headers, this);
    if (this.#attempts > 0 && this.virtualHost?.tellsAttempts) head.headers.set('x-envoy-attempt-count', String(this.#attempts));
    for (const [name, value] of extra) if (!framesMessage(name)) head.headers.add(name, value);
    this.#answerWith(head, body);
  }

  #answerWith(head: ResponseHead, body: Buffer): void {
    this.responseCode = head.status;
    // A filter may be what has thrown.
    if (!this.#isFailing) for (const filter of this.settings.responseFilters) filter.onResponse!(this, head);
    if (this.settings.setsRequestIdInResponse) head.headers.add('x-request-id', this.head.headers.get('x-request-id') ?? '');
    if (!head.headers.has('date')) head.headers.add('date', httpDate());
    const hasBody = head.contentLength > 0 && !this.isHeadRequest;
    this.downstream.respond(head, hasBody, -1);
    if (hasBody) {
      this.downstream.data(body);
      this.bytesSent += body.length;
    }
    this.#headSent = true;
    this.downstream.end(noFields);
    this.#finish();
    this.downstream.ended();
  }

  // ---- the end ----

  /** Runs a timer of this exchange: what it throws ends this exchange alone. */
  runGuarded(work: () => void): void {
    try {
      boundaries.timer.enter();
      work();
    } catch (error) {
      this.#failed(error, boundaries.timer);
    }
  }

  /**
   * A continuation of a filter, for a callback of another service, process or thread. What it throws ends this exchange alone, with 500, and it
   * does nothing when the exchange is over.
   */
  later<Args extends unknown[]>(continuation: (...args: Args) => void): (...args: Args) => void {
    return (...args) => {
      if (this.isOver) return;
      try {
        boundaries.filter.enter();
        continuation(...args);
      } catch (error) {
        this.#failed(error, boundaries.filter);
      }
    };
  }

  /** Asynchronous work of a filter, which resumes the filters itself. Its rejection ends this exchange alone, with 500. */
  startWork(work: () => Promise<void>): void {
    this.later(() => {
      work().catch((error: unknown) => {
        if (!this.isOver) this.#failed(error, boundaries.filter);
      });
    })();
  }

  /** Ends this exchange after an exception: with 500, or by breaking off a response that has begun. Never throws. */
  #failed(error: unknown, boundary: ErrorBoundary): void {
    boundary.caught(error);
    try {
      if (!this.#isFailing && !this.#isFinished && !this.#headSent) {
        this.#isFailing = true;
        this.#timer = void clearTimeout(this.#timer);
        this.downstream.makeLast();
        return this.reply(500, 'internal error', '', 'internal_error', grpcStatus.INTERNAL);
      }
      this.#isFailing = true;
      if (!this.#isFinished) this.#finish();
      this.downstream.abort();
    } catch (again) {
      boundary.caught(again);
      boundary.run(() => this.#finish());
      boundary.run(() => this.downstream.abort());
    }
  }

  #dropUpstream(): void {
    const upstream = this.#upstream;
    if (upstream === undefined) return;
    this.#leaveEndpoint();
    this.#upstream = undefined;
    this.#isForwarding = false;
    upstream.abandon();
  }

  #leaveEndpoint(): void {
    if (this.#upstream === undefined) return;
    this.cluster!.activeRequests--;
    this.endpoint!.activeRequests--;
  }

  #finish(): void {
    if (this.#isFinished) return;
    this.#isFinished = true;
    if (this.#timer !== undefined) clearTimeout(this.#timer);
    if (this.#timeoutTimer !== undefined) clearTimeout(this.#timeoutTimer);
    if (this.#perTryTimer !== undefined) clearTimeout(this.#perTryTimer);
    this.#endRetry();
    if (this.#queuedAt !== undefined) this.cluster!.stopWaiting(this.#queuedAt, this);
    if (this.#upstream !== undefined) this.#dropUpstream();
    if (this.#parked !== undefined) for (const attempt of this.#parked) attempt.abandon();
    this.#replay = undefined;
    this.#collector = undefined;
    this.#held = undefined;
    this.durationMs = performance.now() - this.#startedAt;
    this.settings.context.counters.values.downstream_requests_active--;
    try {
      boundaries.record.enter();
      this.span?.end(this);
      recordRequest(this);
    } catch (error) {
      boundaries.record.caught(error);
    }
  }
}
