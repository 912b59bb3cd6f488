// Fields of Istio's kinds that its API has (istio/api 1.32) and the packages that ./generate-schemas.mjs reads do not have yet. A line
// leaves this file when a newer package knows it: the generator says so.
const text = { type: 'string' };
const number = { type: 'number' };
const flag = { type: 'boolean' };
const list = (items) => ({ type: 'array', items });
const object = (properties) => ({ type: 'object', properties });
const described = (description, schema) => ({ ...schema, description });

const http2KeepAlive = described('PING frames by which dead HTTP/2 connections are found.', object({ interval: text, timeout: text }));
const serverTls = {
  alpnProtocols: described('What is offered in the handshake, instead of h2 and http/1.1.', list(text)),
  ecdhCurves: described('Curves for key agreement, the best first.', list(text)),
  insecureSkipVerify: described('Client certificates are asked for but not verified.', flag),
};
const balancer = {
  zoneAwareLbSetting: described(
    'Calls stay in the zone of their caller as far as the endpoints there suffice.',
    object({
      enabled: { type: 'boolean' },
      failover: list(object({ from: text, to: text })),
      failoverPriority: list(text),
      minClusterSize: number,
    }),
  ),
};
const outliers = {
  failurePercentageThreshold: described('The share of failed requests, in percent, from which on an endpoint is ejected.', number),
  outlierDetectionHttpErrorCodes: described('The statuses that count as errors, instead of 5xx.', list(text)),
};
const clientTls = { caCertCredentialName: described('The secret that holds the roots alone.', text) };

/** Places of a traffic policy: the settings of one port, and those of all. */
const policy = (path) => [
  [`${path}.connectionPool.http`, { http2KeepAlive }],
  [`${path}.loadBalancer`, balancer],
  [`${path}.outlierDetection`, outliers],
  [`${path}.tls`, clientTls],
];
const trafficPolicy = (path) => [
  ...policy(path),
  ...policy(`${path}.portLevelSettings[]`),
  [`${path}.retryBudget`, { budgetInterval: described('The time over which the active requests are counted.', text) }],
];

/** By kind: the place of an object in its schema (`[]`: of each element), and the fields that it gains. */
export const newerFields = {
  'networking.istio.io/DestinationRule': [...trafficPolicy('spec.trafficPolicy'), ...trafficPolicy('spec.subsets[].trafficPolicy')],
  'networking.istio.io/Gateway': [['spec.servers[].tls', serverTls]],
  'networking.istio.io/Sidecar': [
    ['spec.inboundConnectionPool.http', { http2KeepAlive }],
    ['spec.ingress[].connectionPool.http', { http2KeepAlive }],
    ['spec.ingress[].tls', serverTls],
  ],
  'security.istio.io/AuthorizationPolicy': [
    [
      'spec.rules[].from[].source',
      {
        trustDomains: described('Trust domains of the caller, from its certificate.', list(text)),
        notTrustDomains: described('Trust domains that the caller must not be of.', list(text)),
      },
    ],
  ],
  'networking.istio.io/VirtualService': [['spec.http[].redirect', { prefixRewrite: described('Replaces the prefix of the path that was matched.', text) }]],
};
