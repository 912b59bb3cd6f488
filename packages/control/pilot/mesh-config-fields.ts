import { isPlainObject } from '@mizzen/api';
import { closestName, messageOf } from '@mizzen/common';
import { parseYaml } from '@mizzen/common/bounded-yaml';

/**
 * The fields of Istio's MeshConfig (istio/api mesh config.proto) and what they do here. A field that does not exist, and one that its writer relies on for
 * security and that has no effect, is an error and refused at its write; any other without effect is a warning.
 */
const effective: Readonly<Record<string, readonly string[] | undefined>> = {
  outboundTrafficPolicy: ['mode'],
  protocolDetectionTimeout: undefined,
  h2UpgradePolicy: undefined,
  dnsRefreshRate: undefined,
  localityLbSetting: ['distribute', 'failover', 'failoverPriority', 'enabled'],
  zoneAwareLbSetting: undefined,
  pathNormalization: ['normalization'],
  trustDomainAliases: undefined,
  caCertificates: undefined,
  extensionProviders: undefined,
  defaultProviders: ['tracing', 'metrics', 'accessLogging'],
  enableAutoMtls: undefined,
  meshMTLS: ['minProtocolVersion', 'cipherSuites', 'ecdhCurves'],
};

const security: Readonly<Record<string, string>> = {
  tlsDefaults: 'set TLS of a Gateway or a DestinationRule there',
  'meshMTLS.cipherSuites': 'only minProtocolVersion is',
  'meshMTLS.ecdhCurves': 'only minProtocolVersion is',
  rootNamespace: 'it is istio-system',
  trustDomain: 'set it with mizzen control --trust-domain',
  defaultServiceExportTo: 'write exportTo in each object',
  defaultVirtualServiceExportTo: 'write exportTo in each object',
  defaultDestinationRuleExportTo: 'write exportTo in each object',
  verifyCertificateAtClient: 'set caCertificates in a DestinationRule',
  inboundTrafficPolicy: 'inbound ports are those that the workload declares',
  certificates: 'use a Certificate of cert-manager.io',
  ca: 'set the authority with mizzen control',
};

const withoutEffect = [
  ...[
    'proxyListenPort',
    'proxyInboundListenPort',
    'proxyHttpPort',
    'connectTimeout',
    'tcpKeepalive',
    'ingressClass',
    'ingressService',
    'ingressControllerMode',
  ],
  ...['ingressSelector', 'enableTracing', 'accessLogFile', 'accessLogFormat', 'accessLogEncoding', 'enableEnvoyAccessLogService', 'disableEnvoyListenerLog'],
  ...['defaultConfig', 'configSources', 'inboundClusterStatName', 'outboundClusterStatName', 'thriftConfig', 'serviceSettings', 'enablePrometheusMerge'],
  ...['discoverySelectors', 'defaultHttpRetryPolicy', 'serviceScopeConfigs', 'defaultProviders.metrics', 'defaultProviders.accessLogging'],
];

const authorizer = ['service', 'port', 'timeout', 'failOpen', 'clearRouteCache', 'statusOnError', 'includeRequestBodyInCheck'];
/** Fields of a provider, by its kind; undefined: the kind has no effect. */
const providerKinds: Readonly<Record<string, readonly string[] | undefined>> = {
  name: undefined,
  opentelemetry: ['service', 'port', 'http'],
  envoyExtAuthzGrpc: authorizer,
  envoyExtAuthzHttp: [
    ...authorizer,
    ...['pathPrefix', 'includeHeadersInCheck', 'includeRequestHeadersInCheck', 'includeAdditionalHeadersInCheck'],
    ...['headersToUpstreamOnAllow', 'headersToDownstreamOnDeny', 'headersToDownstreamOnAllow'],
  ],
};
const providersWithoutEffect = [
  ...['zipkin', 'lightstep', 'datadog', 'stackdriver', 'opencensus', 'skywalking', 'prometheus', 'sds'],
  ...['envoyFileAccessLog', 'envoyHttpAls', 'envoyTcpAls', 'envoyOtelAls'],
];
/** Legal, and of no security: `envoyExtAuthzGrpc` and `opentelemetry` have more of these than are in effect. */
const providerFieldsWithoutEffect = ['maxTagLength', 'resourceDetectors', 'dynatraceSampler', 'initialMetadata', 'grpc', 'disableContextPropagation'];

export interface MeshConfigNote {
  readonly level: 'error' | 'warning';
  readonly message: string;
}

/** What the text in the ConfigMap says that has no effect. */
export function meshConfigNotes(text: unknown): MeshConfigNote[] {
  let value: unknown;
  try {
    value = typeof text === 'string' ? parseYaml(text) : undefined;
  } catch (error) {
    return [{ level: 'error', message: `YAML: ${messageOf(error)}` }];
  }
  if (!isPlainObject(value)) return [];
  return Object.entries(value).flatMap(([field, given]) => {
    if (field === 'extensionProviders') return providerNotes(given);
    const inner = effective[field];
    if (inner !== undefined && isPlainObject(given)) return Object.keys(given).flatMap((name) => noteOf(`${field}.${name}`, name, inner));
    return noteOf(field, field, [...Object.keys(effective), ...Object.keys(security), ...withoutEffect]);
  });
}

function providerNotes(providers: unknown): MeshConfigNote[] {
  if (!Array.isArray(providers)) return [];
  return providers.flatMap((provider: unknown, i) =>
    Object.entries(isPlainObject(provider) ? provider : {}).flatMap(([kind, given]): MeshConfigNote[] => {
      const path = `extensionProviders[${i}].${kind}`;
      if (providersWithoutEffect.includes(kind)) return [{ level: 'warning', message: `${path} has no effect` }];
      const fields = providerKinds[kind];
      if (fields === undefined || !isPlainObject(given)) return noteOf(path, kind, [...Object.keys(providerKinds), ...providersWithoutEffect]);
      return Object.keys(given).flatMap((field): MeshConfigNote[] =>
        providerFieldsWithoutEffect.includes(field) && !fields.includes(field)
          ? [{ level: 'warning', message: `${path}.${field} has no effect` }]
          : noteOf(`${path}.${field}`, field, fields),
      );
    }),
  );
}

function noteOf(path: string, name: string, known: readonly string[]): MeshConfigNote[] {
  if (!known.includes(name)) {
    const meant = closestName(name, known);
    return [{ level: 'error', message: `${path}: unknown field${meant === undefined ? '' : `: did you mean ${meant}?`}` }];
  }
  if (Object.hasOwn(security, path)) return [{ level: 'error', message: `${path} is not enforced: ${security[path]}` }];
  return withoutEffect.includes(path) ? [{ level: 'warning', message: `${path} has no effect` }] : [];
}
