import { MizzenError, messageOf } from '@mizzen/common';
import * as x509 from '@peculiar/x509';

const maxCsrBytes = 16 * 1024;

/** Throws MizzenError `invalid-csr`: too long, unreadable, or not signed by its own key. */
export async function readSigningRequest(csrPem: string): Promise<x509.Pkcs10CertificateRequest> {
  if (csrPem.length > maxCsrBytes) throw new MizzenError('invalid-csr', `the certificate request is larger than ${maxCsrBytes} bytes`);
  try {
    const csr = new x509.Pkcs10CertificateRequest(csrPem);
    if (!(await csr.verify())) throw new Error('its signature does not fit its key');
    return csr;
  } catch (error) {
    throw new MizzenError('invalid-csr', `the certificate request cannot be used: ${messageOf(error)}`);
  }
}
