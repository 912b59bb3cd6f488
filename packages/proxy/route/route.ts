import type { Fields } from '../message/fields.ts';
import type { RequestHead } from '../message/request-head.ts';
import type { RequestHash } from './hash-policy.ts';
import type { HeaderOperations } from './header-operations.ts';
import type { Condition, HeadersTest, TextTest } from './matchers.ts';
import type { HasMetadata } from './metadata-matcher.ts';
import type { RouteRateLimits } from './rate-limit-actions.ts';
import type { RegexSubstitution } from './regex-substitution.ts';
import type { WeightedTargets } from './weighted-targets.ts';

/** One compiled route: its conditions, and what to do with a request that meets them. Built by ./compile-routes.ts. */
export class Route {
  readonly name: string;
  readonly path: PathCondition;
  readonly conditions: readonly Condition[];
  readonly action: RouteAction;
  readonly fault: FaultPolicy | undefined;
  readonly cors: CorsPolicy | undefined;
  /** What the route says to filters, compiled, by their names (`typed_per_filter_config`); undefined: nothing. */
  readonly filterConfigs: ReadonlyMap<string, unknown> | undefined;
  /** What is counted of its requests, by the rate limit filters; undefined: nothing. */
  readonly rateLimits: RouteRateLimits | undefined;
  /** Changes to answers that come from no target: redirects, direct responses, failures. */
  readonly responseHeaders: HeaderOperations | undefined;
  /** Where a person wrote it: `bookinfo.yaml:41`. */
  readonly origin: string;

  constructor(fields: Omit<Route, 'matches'>) {
    this.name = fields.name;
    this.path = fields.path;
    this.conditions = fields.conditions;
    this.action = fields.action;
    this.fault = fields.fault;
    this.cors = fields.cors;
    this.filterConfigs = fields.filterConfigs;
    this.rateLimits = fields.rateLimits;
    this.responseHeaders = fields.responseHeaders;
    this.origin = fields.origin;
  }

  /** `path` is the target without its query. */
  matches(head: RequestHead, path: string, metadata: HasMetadata | undefined): boolean {
    if (this.path.kind === 'connect' ? head.method !== 'CONNECT' : !matchesPath(this.path, path)) return false;
    for (let i = 0; i < this.conditions.length; i++) if (!this.conditions[i]!.matches(head, metadata)) return false;
    return true;
  }
}

export interface PathCondition {
  /** `connect`: CONNECT requests and nothing else, whatever they name (route_components.proto `connect_matcher`). */
  readonly kind: 'prefix' | 'exact' | 'regex' | 'segmentPrefix' | 'connect';
  readonly text: string;
  readonly ignoresCase: boolean;
  readonly regex: TextTest | undefined;
}

export function matchesPath(condition: PathCondition, path: string): boolean {
  if (condition.regex !== undefined) return condition.regex(path);
  const text = condition.ignoresCase ? path.toLowerCase() : path;
  if (condition.kind === 'exact') return text === condition.text;
  if (condition.kind === 'prefix') return text.startsWith(condition.text);
  return text === condition.text || (text.startsWith(condition.text) && text.charCodeAt(condition.text.length) === 0x2f);
}

export type RouteAction = ForwardAction | RedirectAction | DirectResponseAction;

export interface ForwardAction {
  readonly kind: 'forward';
  readonly targets: WeightedTargets<Target>;
  /** 0: none. */
  readonly timeoutMs: number;
  /** A gRPC caller's `grpc-timeout` counts instead, up to this; 0: whatever it says; undefined: it does not count. */
  readonly maxGrpcTimeoutMs: number | undefined;
  readonly retry: RetryPolicy | undefined;
  readonly rewrite: PathRewrite | undefined;
  readonly hostRewrite: HostRewrite | undefined;
  /** Where the host is rewritten, the one before is added to `x-forwarded-host`. */
  readonly tellsHost: boolean;
  readonly hedge: HedgePolicy | undefined;
  /** The status when the cluster is not known. */
  readonly clusterNotFoundStatus: number;
  readonly mirrors: readonly Mirror[];
  /** undefined: nothing of the request decides which endpoint it goes to. */
  readonly hash: RequestHash | undefined;
  /** Upgrades that this route switches on or off, by name in lower case (`upgrade_configs`). */
  readonly upgrades: ReadonlyMap<string, boolean>;
  /** A CONNECT ends here and its bytes go to the destination as they are (`connect_config`), instead of being sent on. */
  readonly terminatesConnect: boolean;
}

export interface Target {
  /** The cluster's name; '' where a header of the request says it. */
  readonly cluster: string;
  readonly clusterHeader: string;
  readonly weight: number;
  /** What the target, the route, its host and its table change, the most specific first. */
  readonly requestHeaders: HeaderOperations | undefined;
  readonly responseHeaders: HeaderOperations | undefined;
  /** undefined: the route's. */
  readonly filterConfigs: ReadonlyMap<string, unknown> | undefined;
  readonly hostRewrite: string | undefined;
}

/** `prefix`: replaces as many characters as the route's path condition matched, -1: the whole path; `regex`: replaces all matches in the path. */
export type PathRewrite =
  | { readonly kind: 'prefix'; readonly length: number; readonly text: string }
  | { readonly kind: 'regex'; readonly substitution: RegexSubstitution };

/** The host that the upstream is told: a text, the value of a header, or what a regex makes of the path. */
export type HostRewrite =
  | { readonly kind: 'literal'; readonly text: string }
  | { readonly kind: 'header'; readonly name: string }
  | { readonly kind: 'path'; readonly substitution: RegexSubstitution };

export interface Mirror {
  /** '' where a header of the request says it. */
  readonly cluster: string;
  readonly clusterHeader: string;
  /** Share of requests, 0 to 1. */
  readonly share: number;
  /** The copy's host says that it is one: `-shadow` is appended. */
  readonly marksHost: boolean;
}

export interface RedirectAction {
  readonly kind: 'redirect';
  readonly status: number;
  readonly scheme: string;
  readonly host: string;
  readonly port: number;
  readonly path: string | undefined;
  readonly rewrite: PathRewrite | undefined;
  readonly stripsQuery: boolean;
}

/** envoy route_components.proto `HedgePolicy`: a try that takes too long is not given up, another runs beside it. */
export interface HedgePolicy {
  readonly onPerTryTimeout: boolean;
}

export interface DirectResponseAction {
  readonly kind: 'direct';
  readonly status: number;
  readonly body: Buffer;
}

/** When and how often to try again (envoy route_components.proto `RetryPolicy`). */
export interface RetryPolicy {
  readonly retries: number;
  readonly perTryTimeoutMs: number;
  readonly onConnectFailure: boolean;
  readonly onReset: boolean;
  readonly onResetBeforeRequest: boolean;
  readonly on5xx: boolean;
  readonly onGatewayError: boolean;
  readonly onRetriable4xx: boolean;
  readonly statusCodes: ReadonlySet<number>;
  /** Answers by one of which a request is sent again. */
  readonly answers: readonly HeadersTest[];
  /** Only requests that meet one of these are; none: all. */
  readonly requests: readonly Condition[];
  readonly onRateLimited: boolean;
  /** The peer has said that it has not looked at the request. */
  readonly onRefusedStream: boolean;
  /** Values of `grpc-status` in a head. */
  readonly grpcStatuses: ReadonlySet<string>;
  readonly avoidsPreviousHosts: boolean;
  /** After so many tries, priorities that have been tried are left out; 0: never. */
  readonly avoidsPrioritiesAfter: number;
  readonly backoffBaseMs: number;
  readonly backoffMaxMs: number;
}

/** Which pages of other origins may call a route (envoy cors.proto `CorsPolicy`). */
export interface CorsPolicy {
  allowsOrigin(origin: string): boolean;
  /** Of answers to preflights, beside those of all answers. */
  readonly preflightFields: Fields;
  /** Fields of a preflight whose values are granted as they were asked for. */
  readonly echoedFields: readonly (readonly [asked: string, granted: string])[];
  /** Of answers to preflights of other origins. */
  readonly refusalFields: Fields;
  readonly answerFields: Fields;
  readonly forwardsUnmatchedPreflights: boolean;
}

export interface FaultPolicy {
  /** Only requests that meet all of these are meant. */
  readonly requests: readonly Condition[];
  readonly delayMs: number;
  /** Share of requests, 0 to 1. */
  readonly delayShare: number;
  readonly abortStatus: number;
  readonly abortGrpcStatus: number | undefined;
  readonly abortShare: number;
}
