/**
 * What users' objects may say and nothing acts on, or what is refused, each with the reason: the source of docs/compatibility.md and of the warnings that
 * a write is answered with. Fields that are not here are in effect. A line leaves this table when its behaviour arrives.
 */
export interface FieldNote {
  /** Below the object, without list indices: `spec.http.fault.delay.exponentialDelay`; a trailing `.*` means all below it. */
  readonly path: string;
  /** `none`: stored, without effect, and warned about; `refused`: the object is not taken, or its status says so. */
  readonly effect: 'none' | 'refused';
  readonly why: string;
}

const none = (path: string, why: string): FieldNote => ({ path, effect: 'none', why });
const refused = (path: string, why: string): FieldNote => ({ path, effect: 'refused', why });

const asIstio = 'Istio does not act on it either';
const ofNode = 'Node.js sets the time before the first probe only; the others are the system’s';

/** The same notes for each place where a traffic policy stands. */
const trafficPolicy = (at: readonly FieldNote[], onPorts: readonly FieldNote[]): FieldNote[] =>
  ['spec.trafficPolicy', 'spec.subsets.trafficPolicy'].flatMap((base) => [
    ...[...at, ...onPorts].map((note) => ({ ...note, path: `${base}.${note.path}` })),
    ...onPorts.map((note) => ({ ...note, path: `${base}.portLevelSettings.${note.path}` })),
  ]);

const inboundPool = (base: string): FieldNote[] => [
  none(`${base}.http.h2UpgradePolicy`, 'the application is spoken to in what its port declares'),
  none(`${base}.http.useClientProtocol`, 'the application is spoken to in what its port declares'),
  none(`${base}.tcp.connectTimeout`, 'the application is on the same machine'),
  none(`${base}.tcp.tcpKeepalive.*`, 'the application is on the same machine'),
];

const routeFilters: readonly FieldNote[] = [
  refused('spec.rules.filters.extensionRef.*', 'no filters of others are known; the route’s status says UnsupportedValue'),
  refused('spec.rules.sessionPersistence.*', 'a DestinationRule with consistentHash keeps clients at one endpoint; the route’s status says UnsupportedValue'),
  none('spec.useDefaultGateways', 'there is no default Gateway'),
];
const bytesRules = 'bytes have nothing by which rules could be told apart: the first one counts';

const certificateIssuer: readonly FieldNote[] = [
  ...['ca', 'selfSigned', 'vault', 'venafi'].map((type) => refused(`spec.${type}.*`, 'issuers of other types than acme are not served')),
  refused('spec.acme.solvers.dns01.*', 'names are proved by http01 alone, which the mesh’s own gateways answer'),
  none('spec.acme.solvers.http01.*', 'the mesh’s own gateways answer, for hosts that the namespace’s Gateways serve over plain HTTP'),
  none('spec.acme.solvers.selector.*', 'there is one way to prove names'),
  none('spec.acme.skipTLSVerify', 'servers are always verified: give caBundle'),
  none('spec.acme.disableAccountKeyGeneration', 'a key is made where there is none'),
  none('spec.acme.enableDurationFeature', 'the server says how long certificates are valid'),
  none('spec.acme.preferredChain', 'the server’s own choice of a chain is taken'),
  none('spec.acme.profile', 'the server’s own profile is taken'),
  none('spec.acme.externalAccountBinding.keyAlgorithm', 'it is HS256, as in cert-manager'),
];

export const fieldNotes: Readonly<Record<string, readonly FieldNote[]>> = {
  'cert-manager.io/Issuer': certificateIssuer,
  'cert-manager.io/ClusterIssuer': certificateIssuer,
  'cert-manager.io/Certificate': [
    ...['ipAddresses', 'uris', 'emailAddresses', 'otherNames.*', 'literalSubject', 'nameConstraints.*', 'isCA'].map((field) =>
      refused(`spec.${field}`, 'ACME servers give certificates of DNS names'),
    ),
    none('spec.subject.*', 'ACME servers leave it out'),
    none('spec.duration', 'the server says how long certificates are valid'),
    none('spec.usages', 'the server says what certificates are for'),
    none('spec.encodeUsagesInRequest', 'the server says what certificates are for'),
    none('spec.signatureAlgorithm', 'it follows from the key'),
    none('spec.additionalOutputFormats.*', 'the Secret holds tls.crt and tls.key'),
    none('spec.keystores.*', 'the Secret holds tls.crt and tls.key'),
    none('spec.privateKey.encoding', 'keys are written as PKCS#8'),
    none('spec.privateKey.rotationPolicy', 'each certificate has a new key'),
    none('spec.revisionHistoryLimit', 'there are no CertificateRequests'),
    none('spec.issuerRef.group', 'it can only be cert-manager.io'),
  ],
  'networking.istio.io/VirtualService': [
    none('spec.http.fault.delay.exponentialDelay', asIstio),
    none('spec.http.fault.abort.http2Error', asIstio),
    none('spec.http.match.statPrefix', 'metrics are told apart by their labels'),
    none('spec.tcp.match.sourceSubnet', asIstio),
    none('spec.tls.match.destinationSubnets', 'TLS is routed by server names alone'),
  ],
  'networking.istio.io/DestinationRule': [
    refused('spec.trafficPolicy.tunnel.protocol: POST', 'proxies are asked for tunnels by CONNECT'),
    ...trafficPolicy(
      [none('retryBudget.budgetInterval', 'the budget is a share of what is under way, as in Envoy without it')],
      [
        none('outlierDetection.consecutiveErrors', `${asIstio}: consecutive5xxErrors and consecutiveGatewayErrors took its place`),
        none('outlierDetection.outlierDetectionHttpErrorCodes', 'statuses of 500 and above count as errors'),
        none('connectionPool.tcp.tcpKeepalive.probes', ofNode),
        none('connectionPool.tcp.tcpKeepalive.interval', ofNode),
      ],
    ),
  ],
  'networking.istio.io/Gateway': [
    none('spec.servers.defaultEndpoint', asIstio),
    none('spec.servers.port.targetPort', asIstio),
    refused('spec.servers.tls.mode: AUTO_PASSTHROUGH', 'routes between clusters by server name are not there'),
  ],
  'networking.istio.io/ServiceEntry': [none('spec.endpoints.network', 'there is one network')],
  'networking.istio.io/WorkloadEntry': [none('spec.network', 'there is one network')],
  'networking.istio.io/WorkloadGroup': [
    none('spec.probe.*', 'sidecars are told by their own configuration how their application is asked (`probe`)'),
    none('spec.template.network', 'there is one network'),
  ],
  'networking.istio.io/ProxyConfig': [
    none('spec.concurrency', 'the number of workers is said when a proxy is started (`--workers`)'),
    none('spec.environmentVariables', 'a proxy’s environment is that of the process that starts it'),
    none('spec.image.*', 'proxies are no containers'),
    none('spec.selector.*', 'nothing of it is in effect'),
  ],
  'networking.istio.io/Sidecar': [
    refused('spec.ingress.tls.*', 'PeerAuthentication says who is let in; certificates of one’s own are for Gateways and Apis'),
    none('spec.ingress.captureMode', 'how connections arrive is said when the sidecar is started'),
    none('spec.ingress.port.targetPort', asIstio),
    none('spec.egress.port.targetPort', asIstio),
    ...inboundPool('spec.inboundConnectionPool'),
    ...inboundPool('spec.ingress.connectionPool'),
  ],
  'networking.istio.io/EnvoyFilter': [
    none('spec.configPatches.patch.filterClass', 'filters are put where the operation says'),
    none('spec.configPatches.match.listener.portName', asIstio),
    refused('spec.configPatches.match.waypoint.*', 'there are no waypoints'),
    refused('spec.configPatches.applyTo: BOOTSTRAP', 'proxies have no bootstrap; a finding says so'),
    refused('spec.configPatches.applyTo: EXTENSION_CONFIG', 'filters have their configuration with them; a finding says so'),
    refused(
      'spec.configPatches.patch.value: other HTTP filters than cors, ext_authz, fault, grpc_http1_bridge, grpc_web, jwt_authn, local_ratelimit, ratelimit, rbac and router',
      'proxies do not have them: those for security are refused, of others a finding tells the writer',
    ),
  ],
  'telemetry.istio.io/Telemetry': [
    none('spec.metrics.*', 'metrics are those that Istio has by default'),
    none('spec.accessLogging.*', 'access logs are on, in one format'),
    none('spec.targetRef.*', 'use selector'),
    none('spec.targetRefs.*', 'use selector'),
    none('spec.tracing.customTags.*', 'spans have Istio’s own tags'),
    none('spec.tracing.match.*', 'both sides of a call are traced'),
    none('spec.tracing.useRequestIdForTraceSampling', 'sampling is decided at the edge'),
  ],
  'extensions.istio.io/WasmPlugin': [
    none('spec.*', 'no plugin is loaded: `defineFilter` is how Mizzen is extended'),
    refused('spec.failStrategy: other than FAIL_OPEN', 'requests would have to fail, since the plugin is never loaded'),
  ],
  'security.istio.io/AuthorizationPolicy': [
    refused('spec.targetRefs.kind: Service', 'targets are Gateways of the Gateway API, and Components of Dapr’s for topics; workloads are selected by labels'),
  ],
  'security.istio.io/RequestAuthentication': [
    refused('spec.targetRefs.kind: Service', 'targets are Gateways of the Gateway API; workloads are selected by labels'),
  ],
  'gateway.networking.k8s.io/GatewayClass': [none('spec.parametersRef.*', 'there is nothing to be said of a class')],
  'gateway.networking.k8s.io/Gateway': [
    none('spec.infrastructure.annotations', 'nobody reads them'),
    none('spec.infrastructure.parametersRef.*', 'gateways are Workloads: their parameters are there'),
    none('spec.defaultScope', 'routes name their Gateways'),
    none('spec.tls.backend.*', 'a DestinationRule says with which certificate back ends are called'),
    none('spec.listeners.tls.options', 'none are known'),
  ],
  'gateway.networking.k8s.io/ListenerSet': [none('spec.listeners.tls.options', 'none are known')],
  'gateway.networking.k8s.io/HTTPRoute': [
    ...routeFilters,
    refused('spec.rules.filters.externalAuth.*', 'not supported; the route’s status says UnsupportedValue'),
    refused('spec.rules.backendRefs.filters.requestMirror.*', 'of one back end, headers may be changed and nothing else'),
    refused('spec.rules.backendRefs.filters.requestRedirect.*', 'of one back end, headers may be changed and nothing else'),
    refused('spec.rules.backendRefs.filters.urlRewrite.*', 'of one back end, headers may be changed and nothing else'),
    refused('spec.rules.backendRefs.filters.cors.*', 'of one back end, headers may be changed and nothing else'),
    refused('spec.rules.backendRefs.filters.extensionRef.*', 'of one back end, headers may be changed and nothing else'),
    refused('spec.rules.backendRefs.filters.externalAuth.*', 'of one back end, headers may be changed and nothing else'),
  ],
  'gateway.networking.k8s.io/GRPCRoute': [
    ...routeFilters,
    refused('spec.rules.backendRefs.filters.requestMirror.*', 'of one back end, headers may be changed and nothing else'),
    refused('spec.rules.backendRefs.filters.extensionRef.*', 'of one back end, headers may be changed and nothing else'),
  ],
  'gateway.networking.k8s.io/TLSRoute': [none('spec.rules[1:]', bytesRules), none('spec.useDefaultGateways', 'there is no default Gateway')],
  'gateway.networking.k8s.io/TCPRoute': [none('spec.rules[1:]', bytesRules), none('spec.useDefaultGateways', 'there is no default Gateway')],
  'gateway.networking.k8s.io/UDPRoute': [
    none('spec.rules[1:]', bytesRules),
    none('spec.useDefaultGateways', 'there is no default Gateway'),
    refused('spec.parentRefs.kind: Service', 'sidecars carry no UDP; the route’s status says UnsupportedValue'),
  ],
  'gateway.networking.k8s.io/BackendTLSPolicy': [
    refused('spec.options', 'no options are supported'),
    refused('spec.targetRefs.kind: ServiceEntry', 'targets are Services; a DestinationRule is for hosts of a ServiceEntry'),
  ],
};
