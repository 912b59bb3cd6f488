import { X509Certificate } from 'node:crypto';
import { pemCertificates } from '@mizzen/common';
import type { SecretStore } from '../tls/secret-store.ts';

/** What may be shown of certificates: names, times and serial numbers, never a key. Envoy's /certs form. */
export function describeCertificates(secrets: SecretStore): unknown {
  const { keyPairs, roots } = secrets.names();
  return {
    certificates: keyPairs.map((name) => ({
      name,
      cert_chain: pemCertificates(secrets.keyPair(name)!.cert).map(describe),
      ca_cert: roots.flatMap((root) => pemCertificates(secrets.roots(root)!.pem).slice(0, 10).map(describe)),
    })),
  };
}

function describe(pem: string): unknown {
  const certificate = new X509Certificate(pem);
  const expiresAt = Date.parse(certificate.validTo);
  return {
    serial_number: certificate.serialNumber.toLowerCase(),
    subject: certificate.subject?.replaceAll('\n', ', ') ?? '',
    subject_alt_names: (certificate.subjectAltName ?? '').split(', ').filter((name) => name !== ''),
    valid_from: new Date(certificate.validFrom).toISOString(),
    expiration_time: new Date(expiresAt).toISOString(),
    days_until_expiration: String(Math.max(0, Math.floor((expiresAt - Date.now()) / 86_400_000))),
    seconds_until_expiration: Math.floor((expiresAt - Date.now()) / 1000),
  };
}
