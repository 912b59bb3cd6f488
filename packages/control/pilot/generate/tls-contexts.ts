import type { Init } from '@mizzen/envoy-api';
import { ApiVersion, type ConfigSourceSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/config_source_pb.js';
import type { CertificateValidationContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { CommonTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import type { MeshSnapshot } from '../snapshot.ts';

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

/** The trust domains whose identities are of this mesh: its own, and those that it is known by too. */
export function trustDomainsOf({ trustDomain, meshConfig }: MeshSnapshot): readonly string[] {
  return [trustDomain, ...meshConfig.trustDomainAliases];
}

/** Those whose identities may call: of this mesh, and of trust domains whose roots it is given. */
export function callersTrustDomains(snapshot: MeshSnapshot): readonly string[] {
  return [...new Set([...trustDomainsOf(snapshot), ...snapshot.meshConfig.caCertificates.flatMap(({ trustDomains }) => trustDomains)])];
}

/** Mutual TLS to a peer of the mesh: own certificate, the peer's verified against the mesh's roots, and one of these identities in it. */
export function meshClientTls(identities: readonly string[], spoken: Spoken): Init<typeof CommonTlsContextSchema> {
  return {
    alpnProtocols: [...spokenAlpn[spoken], ...meshAlpn],
    ...meshCredentials(identities.map((value) => ({ case: 'exact' as const, value }))),
  };
}

/**
 * The same for clients: every identity of the mesh, or those that are `demanded`. A root may sign for other meshes, too, whose identities are strangers here.
 */
export function meshServerTls(
  trustDomains: readonly string[],
  demanded: Init<typeof CertificateValidationContextSchema> = {},
): Init<typeof CommonTlsContextSchema> {
  return {
    alpnProtocols: [...meshHttpAlpn, ...meshAlpn, 'h2', 'http/1.1'],
    ...meshCredentials(
      trustDomains.map((domain) => ({ case: 'prefix' as const, value: `spiffe://${domain}/` })),
      demanded,
    ),
  };
}

function meshCredentials(
  names: readonly { readonly case: 'exact' | 'prefix'; readonly value: string }[],
  demanded: Init<typeof CertificateValidationContextSchema> = {},
): Init<typeof CommonTlsContextSchema> {
  return {
    tlsCertificateSdsSecretConfigs: [{ name: workloadSecretName, sdsConfig: ads }],
    validationContextType: {
      case: 'combinedValidationContext',
      value: {
        defaultValidationContext: {
          ...demanded,
          matchTypedSubjectAltNames: demanded.matchTypedSubjectAltNames?.length
            ? demanded.matchTypedSubjectAltNames
            : names.map((matchPattern) => ({ sanType: 3, matcher: { matchPattern } })),
        },
        validationContextSdsSecretConfig: { name: rootSecretName, sdsConfig: ads },
      },
    },
  };
}
