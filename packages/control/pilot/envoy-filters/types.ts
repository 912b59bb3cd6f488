/** networking.istio.io EnvoyFilter. Meaning and defaults: istio/api envoy_filter.proto. */
export interface EnvoyFilterSpec {
  readonly workloadSelector?: { readonly labels?: Readonly<Record<string, string>> };
  readonly targetRefs?: readonly { readonly group?: string; readonly kind?: string; readonly name: string }[];
  readonly configPatches?: readonly ConfigPatchSpec[];
  /** Lower first. */
  readonly priority?: number;
}

export interface ConfigPatchSpec {
  readonly applyTo: ApplyTo;
  readonly match?: PatchMatchSpec;
  readonly patch?: { readonly operation?: Operation; readonly value?: unknown; readonly filterClass?: string };
}

export type ApplyTo =
  | 'CLUSTER'
  | 'LISTENER'
  | 'FILTER_CHAIN'
  | 'NETWORK_FILTER'
  | 'HTTP_FILTER'
  | 'LISTENER_FILTER'
  | 'ROUTE_CONFIGURATION'
  | 'VIRTUAL_HOST'
  | 'HTTP_ROUTE'
  | 'EXTENSION_CONFIG'
  | 'BOOTSTRAP'
  | 'INVALID';

export type Operation = 'MERGE' | 'ADD' | 'REMOVE' | 'INSERT_BEFORE' | 'INSERT_AFTER' | 'INSERT_FIRST' | 'REPLACE' | 'INVALID';

export interface PatchMatchSpec {
  readonly context?: 'ANY' | 'SIDECAR_INBOUND' | 'SIDECAR_OUTBOUND' | 'GATEWAY' | 'WAYPOINT';
  readonly proxy?: { readonly proxyVersion?: string; readonly metadata?: Readonly<Record<string, string>> };
  readonly cluster?: { readonly portNumber?: number; readonly service?: string; readonly subset?: string; readonly name?: string };
  readonly listener?: {
    readonly portNumber?: number;
    readonly portName?: string;
    readonly name?: string;
    readonly listenerFilter?: string;
    readonly filterChain?: {
      readonly name?: string;
      readonly sni?: string;
      readonly transportProtocol?: string;
      readonly applicationProtocols?: string;
      readonly destinationPort?: number;
      readonly filter?: { readonly name?: string; readonly subFilter?: { readonly name?: string } };
    };
  };
  readonly routeConfiguration?: {
    readonly portNumber?: number;
    readonly portName?: string;
    readonly gateway?: string;
    readonly name?: string;
    readonly vhost?: {
      readonly name?: string;
      readonly domainName?: string;
      readonly route?: { readonly name?: string; readonly action?: 'ANY' | 'ROUTE' | 'REDIRECT' | 'DIRECT_RESPONSE' };
    };
  };
}
