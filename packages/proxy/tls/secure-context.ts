import type { SecureContextOptions } from 'node:tls';
import { tlsDefaults } from '@mizzen/common';
import { type TlsParameters, TlsParameters_TlsProtocol } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { KeyPair, TrustedRoots } from './secret-store.ts';

/**
 * What both sides of TLS give to OpenSSL, beginning with the defaults of the mesh (`tlsDefaults`). TLS 1.2 is the least that is spoken, whatever is asked for: older versions are broken
 * (RFC 8996). Cipher suites are OpenSSL's names; those of TLS 1.3 cannot be chosen (common.proto `TlsParameters`).
 */
export function contextOptions(pairs: readonly KeyPair[], roots: TrustedRoots | undefined, parameters: TlsParameters | undefined): SecureContextOptions {
  const [first] = pairs;
  return {
    ...(first === undefined
      ? {}
      : { cert: pairs.map((pair) => pair.cert), key: pairs.map(({ key, passphrase }) => ({ pem: key, ...(passphrase ? { passphrase } : {}) })) }),
    ...(roots === undefined ? {} : { ca: roots.pem, ...(roots.crl ? { crl: roots.crl } : {}) }),
    ...tlsDefaults,
    minVersion: parameters?.tlsMinimumProtocolVersion === TlsParameters_TlsProtocol.TLSv1_3 ? 'TLSv1.3' : 'TLSv1.2',
    maxVersion: parameters?.tlsMaximumProtocolVersion === TlsParameters_TlsProtocol.TLSv1_2 ? 'TLSv1.2' : 'TLSv1.3',
    ...(parameters && parameters.cipherSuites.length > 0 ? { ciphers: opensslCiphers(parameters.cipherSuites) } : {}),
    ...(parameters && parameters.ecdhCurves.length > 0 ? { ecdhCurve: parameters.ecdhCurves.join(':') } : {}),
    ...(parameters && parameters.signatureAlgorithms.length > 0 ? { sigalgs: parameters.signatureAlgorithms.join(':') } : {}),
  };
}

/** BoringSSL's notation `[A|B]`, suites of equal preference, becomes a plain order. The suites of TLS 1.3 stay as they are. */
function opensslCiphers(suites: readonly string[]): string {
  return [
    'TLS_AES_128_GCM_SHA256',
    'TLS_AES_256_GCM_SHA384',
    'TLS_CHACHA20_POLY1305_SHA256',
    ...suites.flatMap((suite) => suite.replace(/^\[|\]$/g, '').split('|')),
  ].join(':');
}
