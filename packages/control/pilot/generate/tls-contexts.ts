import type { Init } from '@mizzen/envoy-api';
import { ApiVersion, type ConfigSourceSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/config_source_pb.js';
import type { CommonTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';

/** "From this ADS stream". */
export const ads: Init<typeof ConfigSourceSchema> = {
  configSourceSpecifier: { case: 'ads', value: {} },
  resourceApiVersion: ApiVersion.V3,
  initialFetchTimeout: { seconds: 0n },
};

/** The secret that a sidecar makes for itself: its key and the certificate that citadel signed. */
export const workloadSecretName = 'default';
/** The secret with the mesh's roots. */
export const rootSecretName = 'ROOTCA';
/** Application protocols by which two sidecars know each other, as in Istio. */
export const meshAlpn = ['istio-peer-exchange', 'istio'];
/** Those by which a client's sidecar says that HTTP is inside, and which: a port without a declared protocol is told by them (Istio's ALPN override). */
export const meshHttpAlpn = ['istio-http/1.0', 'istio-http/1.1', 'istio-h2'];
const meshHttp1Alpn = 'istio-http/1.1';
const meshHttp2Alpn = 'istio-h2';

/** What a cluster's connections carry; `either`: what its client speaks. */
export type Spoken = 'bytes' | 'http1' | 'http2' | 'either';

const spokenAlpn: Readonly<Record<Spoken, readonly string[]>> = {
  bytes: [],
  http1: [meshHttp1Alpn],
  http2: [meshHttp2Alpn],
  either: [meshHttp2Alpn, meshHttp1Alpn],
};

/** Mutual TLS inside the mesh: own certificate, peers verified against the mesh's roots and, for clients, the expected identities. */
export function meshTlsContext(expectedIdentities: readonly string[] | undefined, spoken: Spoken = 'bytes'): Init<typeof CommonTlsContextSchema> {
  return {
    alpnProtocols: expectedIdentities === undefined ? ['h2', 'http/1.1'] : [...spokenAlpn[spoken], ...meshAlpn],
    tlsCertificateSdsSecretConfigs: [{ name: workloadSecretName, sdsConfig: ads }],
    validationContextType: {
      case: 'combinedValidationContext',
      value: {
        defaultValidationContext: {
          matchTypedSubjectAltNames: (expectedIdentities ?? []).map((uri) => ({ sanType: 3, matcher: { matchPattern: { case: 'exact', value: uri } } })),
        },
        validationContextSdsSecretConfig: { name: rootSecretName, sdsConfig: ads },
      },
    },
  };
}
