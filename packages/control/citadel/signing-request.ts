import { createPublicKey } from 'node:crypto';
import { MizzenError, messageOf } from '@mizzen/common';
import * as x509 from '@peculiar/x509';

const maxCsrBytes = 16 * 1024;
/** A larger key costs the authority and every peer of its holder more than it gives. */
const maxRsaBits = 8_192;
const minRsaBits = 2_048;
const minRsaExponent = 65_537n;
const curves = new Set(['prime256v1', 'secp384r1', 'secp521r1']);
const webCurves = new Set(['P-256', 'P-384', 'P-521']);
const digests = new Set(['SHA-256', 'SHA-384', 'SHA-512']);

/**
 * Throws MizzenError `invalid-csr`: too long, unreadable, not signed by its own key, or with a key or a signature that is too weak to certify (CA/Browser
 * Forum Baseline Requirements 6.1.5 and 7.1.3).
 */
export async function readSigningRequest(csrPem: string): Promise<x509.Pkcs10CertificateRequest> {
  if (csrPem.length > maxCsrBytes) throw new MizzenError('invalid-csr', `the certificate request is larger than ${maxCsrBytes} bytes`);
  try {
    const csr = new x509.Pkcs10CertificateRequest(csrPem);
    const weakness = weaknessOf(csr);
    if (weakness !== undefined) throw new Error(weakness);
    if (!(await csr.verify())) throw new Error('its signature does not fit its key');
    return csr;
  } catch (error) {
    throw new MizzenError('invalid-csr', `the certificate request cannot be used: ${messageOf(error)}`);
  }
}

function weaknessOf(csr: x509.Pkcs10CertificateRequest): string | undefined {
  const { name, namedCurve: curve } = csr.publicKey.algorithm as { readonly name?: string; readonly namedCurve?: string };
  // What nearly all workloads have needs no second reading of the key.
  if (name === 'ECDSA' && curve !== undefined && webCurves.has(curve)) return weakDigest(csr);
  const key = createPublicKey({ key: Buffer.from(csr.publicKey.rawData), format: 'der', type: 'spki' });
  const { modulusLength = 0, publicExponent = 0n, namedCurve } = key.asymmetricKeyDetails ?? {};
  switch (key.asymmetricKeyType) {
    case 'ed25519':
      return undefined;
    case 'ec':
      if (namedCurve === undefined || !curves.has(namedCurve))
        return `keys on the curve ${namedCurve ?? '(unnamed)'} are not signed: use P-256, P-384 or P-521`;
      break;
    case 'rsa':
      if (modulusLength < minRsaBits || modulusLength > maxRsaBits)
        return `RSA keys of ${modulusLength} bits are not signed: use ${minRsaBits} to ${maxRsaBits} bits, or P-256`;
      if (publicExponent < minRsaExponent || publicExponent % 2n === 0n)
        return `RSA keys with the exponent ${publicExponent} are not signed: use ${minRsaExponent}`;
      break;
    default:
      return `keys of type ${key.asymmetricKeyType} are not signed: use P-256, RSA or Ed25519`;
  }
  return weakDigest(csr);
}

function weakDigest(csr: x509.Pkcs10CertificateRequest): string | undefined {
  const { hash } = csr.signatureAlgorithm as { readonly hash?: { readonly name?: string } };
  return hash?.name !== undefined && digests.has(hash.name) ? undefined : `a signature with ${hash?.name ?? 'an unknown digest'} is not accepted: use SHA-256`;
}
