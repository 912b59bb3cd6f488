import { constants } from 'node:crypto';
import type { SecureContextOptions } from 'node:tls';

/**
 * Cipher suites that every server and client of the mesh offers unless its configuration names others: Envoy's defaults (common.proto
 * `TlsParameters.cipher_suites`). All are forward secret and authenticated; there is no RSA key exchange and no CBC.
 */
export const defaultCipherSuites: readonly string[] = [
  ...['TLS_AES_128_GCM_SHA256', 'TLS_AES_256_GCM_SHA384', 'TLS_CHACHA20_POLY1305_SHA256'],
  ...['ECDHE-ECDSA-AES128-GCM-SHA256', 'ECDHE-RSA-AES128-GCM-SHA256', 'ECDHE-ECDSA-CHACHA20-POLY1305', 'ECDHE-RSA-CHACHA20-POLY1305'],
  ...['ECDHE-ECDSA-AES256-GCM-SHA384', 'ECDHE-RSA-AES256-GCM-SHA384'],
];

/** What every TLS socket of the mesh starts from: TLS 1.2 at least, these suites, and no renegotiation (the CPU time of a handshake for a few bytes). */
export const tlsDefaults: Required<Pick<SecureContextOptions, 'minVersion' | 'ciphers' | 'secureOptions'>> = {
  minVersion: 'TLSv1.2',
  ciphers: defaultCipherSuites.join(':'),
  secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
};
