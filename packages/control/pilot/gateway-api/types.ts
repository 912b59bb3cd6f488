/** gateway.networking.k8s.io, the fields that have behaviour. Meaning and defaults: kubernetes-sigs/gateway-api apis/v1. */
export const group = 'gateway.networking.k8s.io';
export const controllerName = 'mizzen.dev/gateway-controller';

export interface GatewayClassSpec {
  readonly controllerName?: string;
  readonly parametersRef?: unknown;
}

export interface K8sGatewaySpec {
  readonly gatewayClassName?: string;
  readonly listeners?: readonly ListenerSpec[];
  readonly addresses?: readonly { readonly type?: string; readonly value?: string }[];
  readonly infrastructure?: { readonly labels?: Readonly<Record<string, string>>; readonly parametersRef?: unknown };
  readonly allowedListeners?: { readonly namespaces?: NamespacesSpec };
  readonly tls?: {
    readonly frontend?: {
      readonly default?: FrontendTlsSpec;
      readonly perPort?: readonly { readonly port?: number; readonly tls?: FrontendTlsSpec }[];
    };
    readonly backend?: unknown;
  };
}

export interface FrontendTlsSpec {
  readonly validation?: { readonly caCertificateRefs?: readonly ReferenceSpec[]; readonly mode?: string };
}

export interface ListenerSpec {
  readonly name: string;
  readonly hostname?: string;
  readonly port: number;
  readonly protocol: string;
  readonly tls?: { readonly mode?: 'Terminate' | 'Passthrough'; readonly certificateRefs?: readonly ReferenceSpec[]; readonly options?: unknown };
  readonly allowedRoutes?: { readonly namespaces?: NamespacesSpec; readonly kinds?: readonly { readonly group?: string; readonly kind: string }[] };
}

export interface ListenerSetSpec {
  readonly parentRef?: ReferenceSpec;
  readonly listeners?: readonly ListenerSpec[];
}

export interface NamespacesSpec {
  readonly from?: 'All' | 'Same' | 'Selector' | 'None';
  readonly selector?: LabelSelectorSpec;
}

export interface LabelSelectorSpec {
  readonly matchLabels?: Readonly<Record<string, string>>;
  readonly matchExpressions?: readonly { readonly key: string; readonly operator: string; readonly values?: readonly string[] }[];
}

export interface ReferenceSpec {
  readonly group?: string;
  readonly kind?: string;
  readonly name: string;
  readonly namespace?: string;
}

export interface ParentReferenceSpec extends ReferenceSpec {
  readonly sectionName?: string;
  readonly port?: number;
}

export interface BackendRefSpec extends ReferenceSpec {
  readonly port?: number;
  readonly weight?: number;
  readonly filters?: readonly RouteFilterSpec[];
}

export interface RouteSpec {
  readonly parentRefs?: readonly ParentReferenceSpec[];
  readonly hostnames?: readonly string[];
  readonly rules?: readonly RouteRuleSpec[];
}

/** HTTPRoute and GRPCRoute; of TLSRoute, TCPRoute and UDPRoute only the back ends. */
export interface RouteRuleSpec {
  readonly name?: string;
  readonly matches?: readonly RouteMatchSpec[];
  readonly filters?: readonly RouteFilterSpec[];
  readonly backendRefs?: readonly BackendRefSpec[];
  readonly timeouts?: { readonly request?: string; readonly backendRequest?: string };
  readonly retry?: { readonly codes?: readonly number[]; readonly attempts?: number; readonly backoff?: string };
  readonly sessionPersistence?: unknown;
}

export interface RouteMatchSpec {
  readonly path?: { readonly type?: 'Exact' | 'PathPrefix' | 'RegularExpression'; readonly value?: string };
  /** HTTP: a method; gRPC: service and method. */
  readonly method?: string | { readonly type?: 'Exact' | 'RegularExpression'; readonly service?: string; readonly method?: string };
  readonly headers?: readonly NamedMatchSpec[];
  readonly queryParams?: readonly NamedMatchSpec[];
}

export interface NamedMatchSpec {
  readonly type?: 'Exact' | 'RegularExpression';
  readonly name: string;
  readonly value: string;
}

export interface HeaderModifierSpec {
  readonly set?: readonly { readonly name: string; readonly value: string }[];
  readonly add?: readonly { readonly name: string; readonly value: string }[];
  readonly remove?: readonly string[];
}

export interface PathModifierSpec {
  readonly type?: 'ReplaceFullPath' | 'ReplacePrefixMatch';
  readonly replaceFullPath?: string;
  readonly replacePrefixMatch?: string;
}

export interface RouteFilterSpec {
  readonly type: string;
  readonly requestHeaderModifier?: HeaderModifierSpec;
  readonly responseHeaderModifier?: HeaderModifierSpec;
  readonly requestMirror?: {
    readonly backendRef: BackendRefSpec;
    readonly percent?: number;
    readonly fraction?: { readonly numerator: number; readonly denominator?: number };
  };
  readonly requestRedirect?: {
    readonly scheme?: string;
    readonly hostname?: string;
    readonly path?: PathModifierSpec;
    readonly port?: number;
    readonly statusCode?: number;
  };
  readonly urlRewrite?: { readonly hostname?: string; readonly path?: PathModifierSpec };
  readonly cors?: {
    readonly allowOrigins?: readonly string[];
    readonly allowCredentials?: boolean;
    readonly allowMethods?: readonly string[];
    readonly allowHeaders?: readonly string[];
    readonly exposeHeaders?: readonly string[];
    readonly maxAge?: number;
  };
}

export interface ReferenceGrantSpec {
  readonly from?: readonly { readonly group?: string; readonly kind: string; readonly namespace: string }[];
  readonly to?: readonly { readonly group?: string; readonly kind: string; readonly name?: string }[];
}

export interface BackendTlsPolicySpec {
  readonly targetRefs?: readonly (ReferenceSpec & { readonly sectionName?: string })[];
  readonly validation?: {
    readonly hostname?: string;
    readonly caCertificateRefs?: readonly ReferenceSpec[];
    readonly wellKnownCACertificates?: string;
    readonly subjectAltNames?: readonly { readonly type?: string; readonly hostname?: string; readonly uri?: string }[];
  };
}

/** metav1.Condition, without what the writer adds. */
export interface Condition {
  readonly type: string;
  readonly status: 'True' | 'False';
  readonly reason: string;
  readonly message: string;
}

export const condition = (type: string, reason: string, message = '', status: Condition['status'] = 'True'): Condition => ({ type, status, reason, message });
export const failed = (type: string, reason: string, message: string): Condition => condition(type, reason, message, 'False');
