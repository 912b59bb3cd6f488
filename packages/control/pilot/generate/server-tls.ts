import type { ServerTlsSpec } from '@mizzen/api';
import type { Init } from '@mizzen/envoy-api';
import {
  CertificateValidationContext_TrustChainVerification,
  type CertificateValidationContextSchema,
  type TlsParametersSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { DownstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { ads } from './tls-contexts.ts';

const versions: Readonly<Record<string, number>> = { TLS_AUTO: 0, TLSV1_0: 1, TLSV1_1: 2, TLSV1_2: 3, TLSV1_3: 4 };
/** Older ones are broken (RFC 8996), whatever a Gateway says. */
const tls12 = 3;

const file = (name: string) => ({ specifier: { case: 'filename' as const, value: name } });

/** How a server of a Gateway ends TLS (istio/api gateway.proto `ServerTLSSettings`). `namespace`: where its secrets are. */
export function serverTlsContext(tls: ServerTlsSpec, namespace: string): Init<typeof DownstreamTlsContextSchema> {
  const credential = (name: string) => `kubernetes://${tls.credentialNamespace ?? namespace}/${name}`;
  const credentials = tls.credentialNames?.length ? tls.credentialNames : tls.credentialName ? [tls.credentialName] : [];
  const files = tls.tlsCertificates?.length
    ? tls.tlsCertificates
    : tls.serverCertificate && tls.privateKey
      ? [{ serverCertificate: tls.serverCertificate, privateKey: tls.privateKey }]
      : [];
  return {
    requireClientCertificate: tls.mode === 'MUTUAL',
    commonTlsContext: {
      alpnProtocols: [...(tls.alpnProtocols ?? ['h2', 'http/1.1'])],
      tlsParams: tlsParameters(tls),
      ...(credentials.length > 0
        ? { tlsCertificateSdsSecretConfigs: credentials.map((name) => ({ name: credential(name), sdsConfig: ads })) }
        : {
            tlsCertificates: files.map(({ serverCertificate = '', privateKey = '' }) => ({
              certificateChain: file(serverCertificate),
              privateKey: file(privateKey),
            })),
          }),
      ...(tls.mode === 'MUTUAL' || tls.mode === 'OPTIONAL_MUTUAL' ? { validationContextType: clientValidation(tls, credentials[0], credential) } : {}),
    },
  };
}

export function tlsParameters(tls: ServerTlsSpec): Init<typeof TlsParametersSchema> & { readonly tlsMinimumProtocolVersion: number } {
  return {
    tlsMinimumProtocolVersion: Math.max(versions[tls.minProtocolVersion ?? 'TLS_AUTO'] ?? 0, tls12),
    tlsMaximumProtocolVersion: versions[tls.maxProtocolVersion ?? 'TLS_AUTO'] ?? 0,
    cipherSuites: [...(tls.cipherSuites ?? [])],
    ecdhCurves: [...(tls.ecdhCurves ?? [])],
  };
}

/** What the certificate of a client must say, beyond a chain to a root. */
export function demandedOfClients(tls: ServerTlsSpec): Init<typeof CertificateValidationContextSchema> {
  return {
    matchTypedSubjectAltNames: (tls.subjectAltNames ?? []).map((name) => ({
      sanType: name.includes('://') ? 3 : 2,
      matcher: { matchPattern: { case: 'exact' as const, value: name } },
    })),
    verifyCertificateSpki: [...(tls.verifyCertificateSpki ?? [])],
    verifyCertificateHash: [...(tls.verifyCertificateHash ?? [])],
  };
}

type Validation = Init<typeof CertificateValidationContextSchema>;

/** What a client's certificate has to lead to, and to say. */
function clientValidation(tls: ServerTlsSpec, first: string | undefined, credential: (name: string) => string) {
  const names: Validation = {
    ...demandedOfClients(tls),
    ...(tls.caCrl ? { crl: file(tls.caCrl) } : {}),
    ...(tls.insecureSkipVerify ? { trustChainVerification: CertificateValidationContext_TrustChainVerification.ACCEPT_UNTRUSTED } : {}),
  };
  if (tls.clientRoots !== undefined)
    return { case: 'validationContext' as const, value: { ...names, trustedCa: { specifier: { case: 'inlineString' as const, value: tls.clientRoots } } } };
  const secret = tls.caCertCredentialName ? credential(tls.caCertCredentialName) : first === undefined ? undefined : credential(first);
  if (secret === undefined)
    return { case: 'validationContext' as const, value: { ...names, trustedCa: file(tls.caCertificates ?? tls.tlsCertificates?.[0]?.caCertificates ?? '') } };
  return {
    case: 'combinedValidationContext' as const,
    value: { defaultValidationContext: names, validationContextSdsSecretConfig: { name: `${secret}-cacert`, sdsConfig: ads } },
  };
}

/** The secrets that a server's settings name. */
export function secretsOf(tls: ServerTlsSpec | undefined, namespace: string): string[] {
  const names = [...(tls?.credentialNames ?? []), tls?.credentialName, tls?.caCertCredentialName].filter((name) => name !== undefined && name !== '');
  return names.map((name) => `kubernetes://${tls?.credentialNamespace ?? namespace}/${name}`);
}
