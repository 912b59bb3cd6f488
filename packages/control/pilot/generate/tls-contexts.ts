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
/** The one by which a client's sidecar says that HTTP is inside: a port without a declared protocol is told by it (Istio's ALPN override). */
export const meshHttpAlpn = 'istio-http/1.1';

/** Mutual TLS inside the mesh: own certificate, peers verified against the mesh's roots and, for clients, the expected identities. */
export function meshTlsContext(expectedIdentities: readonly string[] | undefined, isHttp = false): Init<typeof CommonTlsContextSchema> {
  return {
    alpnProtocols: expectedIdentities === undefined ? ['h2', 'http/1.1'] : isHttp ? [meshHttpAlpn, ...meshAlpn] : meshAlpn,
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
