/** networking.istio.io VirtualService, the fields that have behaviour. Meaning and defaults: istio/api virtual_service.proto. */
export interface VirtualServiceSpec {
  readonly hosts?: readonly string[];
  readonly gateways?: readonly string[];
  readonly http?: readonly HttpRouteSpec[];
  readonly tls?: readonly TlsRouteSpec[];
  readonly tcp?: readonly TcpRouteSpec[];
  readonly exportTo?: readonly string[];
  /** Not of Istio: where datagrams go; no schema has it. */
  readonly udp?: readonly RouteDestinationSpec[];
}

export interface HttpRouteSpec {
  readonly name?: string;
  readonly match?: readonly HttpMatchSpec[];
  readonly route?: readonly HttpDestinationSpec[];
  readonly redirect?: HttpRedirectSpec;
  readonly directResponse?: { readonly status: number; readonly body?: { readonly string?: string; readonly bytes?: string } };
  readonly rewrite?: { readonly uri?: string; readonly authority?: string; readonly uriRegexRewrite?: { readonly match?: string; readonly rewrite?: string } };
  readonly timeout?: string;
  readonly retries?: HttpRetrySpec;
  readonly fault?: HttpFaultSpec;
  readonly mirror?: DestinationSpec;
  readonly mirrors?: readonly { readonly destination?: DestinationSpec; readonly percentage?: PercentSpec }[];
  readonly mirrorPercentage?: PercentSpec;
  readonly mirrorPercent?: number;
  /** The oldest form. */
  readonly mirror_percent?: number;
  readonly headers?: HeadersSpec;
  readonly delegate?: { readonly name?: string; readonly namespace?: string };
  readonly corsPolicy?: CorsPolicySpec;
  /** Not of Istio: the object that it was written in, and where in it, when that is another than the one that it is part of. No schema has it. */
  readonly source?: { readonly object: unknown; readonly path: string };
  /** Not of Istio: what is answered for a destination that is not there; 503. */
  readonly missingClusterStatus?: 500;
  /** Not of Istio: what policies of an Api say to filters, packed. No resource can set it: no schema has it. */
  readonly filterConfigs?: Readonly<Record<string, unknown>>;
}

export interface TlsRouteSpec {
  readonly match?: readonly TlsMatchSpec[];
  readonly route?: readonly RouteDestinationSpec[];
}

export interface TcpRouteSpec {
  readonly match?: readonly L4MatchSpec[];
  readonly route?: readonly RouteDestinationSpec[];
}

export interface L4MatchSpec {
  /** `10.1.0.0/16`, or an address. */
  readonly destinationSubnets?: readonly string[];
  readonly port?: number;
  readonly sourceLabels?: Readonly<Record<string, string>>;
  readonly sourceNamespace?: string;
  readonly gateways?: readonly string[];
}

export interface TlsMatchSpec extends L4MatchSpec {
  /** Server names in the handshake; `*.example.com` too. */
  readonly sniHosts?: readonly string[];
}

export interface RouteDestinationSpec {
  readonly destination: DestinationSpec;
  readonly weight?: number;
}

export interface PercentSpec {
  readonly value?: number;
}

export interface StringMatchSpec {
  readonly exact?: string;
  readonly prefix?: string;
  readonly regex?: string;
  /** Not of Istio: a prefix by whole segments. */
  readonly segments?: string;
}

export interface HttpMatchSpec {
  readonly name?: string;
  readonly uri?: StringMatchSpec;
  readonly scheme?: StringMatchSpec;
  readonly method?: StringMatchSpec;
  readonly authority?: StringMatchSpec;
  readonly headers?: Readonly<Record<string, StringMatchSpec>>;
  readonly withoutHeaders?: Readonly<Record<string, StringMatchSpec>>;
  readonly queryParams?: Readonly<Record<string, StringMatchSpec>>;
  readonly port?: number;
  readonly sourceLabels?: Readonly<Record<string, string>>;
  readonly sourceNamespace?: string;
  readonly gateways?: readonly string[];
  readonly ignoreUriCase?: boolean;
  readonly statPrefix?: string;
}

export interface DestinationSpec {
  readonly host: string;
  readonly subset?: string;
  readonly port?: { readonly number?: number };
}

export interface HttpDestinationSpec {
  readonly destination: DestinationSpec;
  readonly weight?: number;
  readonly headers?: HeadersSpec;
}

export interface HeadersSpec {
  readonly request?: HeaderOperationsSpec;
  readonly response?: HeaderOperationsSpec;
}

export interface HeaderOperationsSpec {
  readonly set?: Readonly<Record<string, string>>;
  readonly add?: Readonly<Record<string, string>>;
  readonly remove?: readonly string[];
}

export interface HttpRedirectSpec {
  readonly uri?: string;
  readonly authority?: string;
  readonly port?: number;
  readonly derivePort?: 'FROM_PROTOCOL_DEFAULT' | 'FROM_REQUEST_PORT';
  readonly scheme?: string;
  readonly redirectCode?: number;
  readonly prefixRewrite?: string;
  /** Not of Istio. */
  readonly uriRegexRewrite?: { readonly match: string; readonly rewrite: string };
  /** Not of Istio: the port of the request's host is left out. */
  readonly dropsPort?: boolean;
}

export interface HttpRetrySpec {
  readonly attempts?: number;
  readonly perTryTimeout?: string;
  readonly retryOn?: string;
  readonly retryRemoteLocalities?: boolean;
  readonly retryIgnorePreviousHosts?: boolean;
  readonly backoff?: string;
}

export interface CorsPolicySpec {
  /** Older form: exact origins, `*` for all. */
  readonly allowOrigin?: readonly string[];
  readonly allowOrigins?: readonly StringMatchSpec[];
  readonly allowMethods?: readonly string[];
  readonly allowHeaders?: readonly string[];
  readonly exposeHeaders?: readonly string[];
  readonly maxAge?: string;
  readonly allowCredentials?: boolean;
  readonly unmatchedPreflights?: 'UNSPECIFIED' | 'FORWARD' | 'IGNORE';
}

export interface HttpFaultSpec {
  readonly delay?: { readonly fixedDelay?: string; readonly percentage?: PercentSpec; readonly percent?: number; readonly exponentialDelay?: string };
  readonly abort?: { readonly httpStatus?: number; readonly grpcStatus?: string; readonly http2Error?: string; readonly percentage?: PercentSpec };
}
