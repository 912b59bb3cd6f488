import 'reflect-metadata';
import { createPrivateKey, randomBytes, webcrypto } from 'node:crypto';
import { join } from 'node:path';
import { MizzenError, messageOf } from '@mizzen/common';
import * as x509 from '@peculiar/x509';
import { readPrivateFile, writePrivateFile } from './private-file.ts';
import { type Identity, spiffeUri } from './spiffe-identity.ts';

/**
 * The mesh's certificate authority: a root that only signs the intermediate, and the intermediate that signs workloads, all ECDSA P-256.
 * Keys live in files of mode 0600 below `directory`. A user's own root or intermediate is used by putting its files there.
 */
export interface IssuedCertificate {
  /** PEM: the leaf, then the intermediate. */
  readonly chain: readonly string[];
  readonly notAfter: Date;
}

type CryptoKey = webcrypto.CryptoKey;

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const dayMs = 86_400_000;
/** Certificates are valid from a minute before they are made, for clocks that are a little behind. */
const clockSkewMs = 60_000;

export const certificateLimits = {
  defaultValiditySeconds: 24 * 3600,
  maxValiditySeconds: 90 * 24 * 3600,
  minValiditySeconds: 10,
  maxCsrBytes: 16 * 1024,
} as const;

x509.cryptoProvider.set(webcrypto);

export class CertificateAuthority {
  readonly trustDomain: string;
  readonly #root: x509.X509Certificate;
  readonly #intermediate: x509.X509Certificate;
  readonly #key: CryptoKey;
  readonly #extraRoots: readonly string[];
  readonly #now: () => number;

  private constructor(
    trustDomain: string,
    root: x509.X509Certificate,
    intermediate: x509.X509Certificate,
    key: CryptoKey,
    extraRoots: readonly string[],
    now: () => number,
  ) {
    this.trustDomain = trustDomain;
    this.#root = root;
    this.#intermediate = intermediate;
    this.#key = key;
    this.#extraRoots = extraRoots;
    this.#now = now;
  }

  /** Opens the authority in `directory`, making what is missing. */
  static async open(directory: string, trustDomain: string, now: () => number = Date.now): Promise<CertificateAuthority> {
    const files = {
      rootCert: join(directory, 'root-cert.pem'),
      rootKey: join(directory, 'root-key.pem'),
      cert: join(directory, 'ca-cert.pem'),
      key: join(directory, 'ca-key.pem'),
    };
    let rootPem = readPrivateFile(files.rootCert);
    let rootKeyPem = readPrivateFile(files.rootKey);
    let certPem = readPrivateFile(files.cert);
    let keyPem = readPrivateFile(files.key);
    if (!rootPem) {
      if (certPem)
        throw new MizzenError(
          'incomplete-ca',
          'ca-cert.pem is there but root-cert.pem is not. Put the root certificate beside it, or remove all files to have a new authority made.',
          directory,
        );
      const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
      const root = await x509.X509CertificateGenerator.createSelfSigned({
        serialNumber: serialNumber(),
        name: [{ O: [trustDomain] }, { CN: ['Mizzen root'] }],
        notBefore: new Date(now() - clockSkewMs),
        notAfter: new Date(now() + 3650 * dayMs),
        keys,
        signingAlgorithm: algorithm,
        extensions: [
          new x509.BasicConstraintsExtension(true, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
          await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
        ],
      });
      rootPem = `${root.toString('pem')}\n`;
      rootKeyPem = await exportKey(keys.privateKey);
      writePrivateFile(files.rootKey, rootKeyPem);
      writePrivateFile(files.rootCert, rootPem);
    }
    if (!certPem || !keyPem) {
      if (!rootKeyPem)
        throw new MizzenError(
          'incomplete-ca',
          'there is no ca-cert.pem with its ca-key.pem, and no root-key.pem to sign a new one with. Add one of the two.',
          directory,
        );
      const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
      const root = parseCertificate(rootPem, files.rootCert);
      const intermediate = await x509.X509CertificateGenerator.create({
        serialNumber: serialNumber(),
        subject: [{ O: [trustDomain] }, { CN: ['Mizzen intermediate'] }],
        issuer: root.subjectName.toJSON(),
        notBefore: new Date(now() - clockSkewMs),
        notAfter: new Date(now() + 1825 * dayMs),
        publicKey: keys.publicKey,
        signingKey: await importKey(rootKeyPem, files.rootKey),
        signingAlgorithm: algorithm,
        extensions: [
          new x509.BasicConstraintsExtension(true, 0, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
          await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
          await x509.AuthorityKeyIdentifierExtension.create(root.publicKey),
        ],
      });
      certPem = `${intermediate.toString('pem')}\n`;
      keyPem = await exportKey(keys.privateKey);
      writePrivateFile(files.key, keyPem);
      writePrivateFile(files.cert, certPem);
    }
    const root = parseCertificate(rootPem, files.rootCert);
    const intermediate = parseCertificate(certPem, files.cert);
    const key = await importKey(keyPem, files.key);
    for (const [certificate, path] of [
      [root, files.rootCert],
      [intermediate, files.cert],
    ] as const) {
      if (certificate.notAfter.getTime() < now())
        throw new MizzenError(
          'expired-certificate',
          `the certificate expired on ${certificate.notAfter.toISOString()}. Replace it; removing ca-cert.pem and ca-key.pem makes a new intermediate.`,
          path,
        );
    }
    if (!(await intermediate.verify({ publicKey: root.publicKey, signatureOnly: true })))
      throw new MizzenError('broken-chain', 'ca-cert.pem is not signed by the root in root-cert.pem.', files.cert);
    const extraRoots = (readPrivateFile(join(directory, 'extra-roots.pem')) ?? '').match(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g) ?? [];
    return new CertificateAuthority(trustDomain, root, intermediate, key, extraRoots, now);
  }

  /** All roots that the mesh trusts, PEM: the authority's own and those in `extra-roots.pem` (a root that is being rotated in or out). */
  get trustBundle(): string {
    return [this.#root.toString('pem'), ...this.#extraRoots].join('\n') + '\n';
  }

  get rootCertificate(): string {
    return `${this.#root.toString('pem')}\n`;
  }

  /**
   * Signs the public key of a workload's CSR (PEM) for `identity`. Everything else that the CSR asks for is ignored: who somebody is was
   * decided by the token or certificate that came with it. Throws MizzenError `invalid-csr`.
   */
  async issue(csrPem: string, identity: Identity, validitySeconds: number): Promise<IssuedCertificate> {
    if (csrPem.length > certificateLimits.maxCsrBytes)
      throw new MizzenError('invalid-csr', `the certificate request is larger than ${certificateLimits.maxCsrBytes} bytes`);
    let csr: x509.Pkcs10CertificateRequest;
    try {
      csr = new x509.Pkcs10CertificateRequest(csrPem);
      if (!(await csr.verify())) throw new Error('its signature does not fit its key');
    } catch (error) {
      throw new MizzenError('invalid-csr', `the certificate request cannot be used: ${messageOf(error)}`);
    }
    const requested = validitySeconds > 0 ? validitySeconds : certificateLimits.defaultValiditySeconds;
    const seconds = Math.min(Math.max(requested, certificateLimits.minValiditySeconds), certificateLimits.maxValiditySeconds);
    return this.#sign(csr.publicKey, seconds, [new x509.SubjectAlternativeNameExtension([{ type: 'url', value: spiffeUri(identity) }], true)], '');
  }

  /** A certificate with its key for one of the control plane's own servers. */
  async issueServer(
    names: { readonly dns: readonly string[]; readonly ip: readonly string[]; readonly identity?: Identity },
    validitySeconds: number,
  ): Promise<{ cert: string; key: string; notAfter: Date }> {
    const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
    const san = new x509.SubjectAlternativeNameExtension([
      ...names.dns.map((value) => ({ type: 'dns' as const, value })),
      ...names.ip.map((value) => ({ type: 'ip' as const, value })),
      ...(names.identity ? [{ type: 'url' as const, value: spiffeUri(names.identity) }] : []),
    ]);
    const { chain, notAfter } = await this.#sign(keys.publicKey, validitySeconds, [san], names.dns[0] ?? '');
    return { cert: chain.join('\n'), key: await exportKey(keys.privateKey), notAfter };
  }

  async #sign(publicKey: x509.PublicKey | CryptoKey, seconds: number, extensions: x509.Extension[], commonName: string): Promise<IssuedCertificate> {
    const end = Math.min(this.#now() + seconds * 1000, this.#intermediate.notAfter.getTime());
    const notAfter = new Date(Math.ceil(end / 1000) * 1000);
    const leaf = await x509.X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      subject: commonName ? [{ O: [this.trustDomain] }, { CN: [commonName] }] : [{ O: [this.trustDomain] }],
      issuer: this.#intermediate.subjectName.toJSON(),
      notBefore: new Date(this.#now() - clockSkewMs),
      notAfter,
      publicKey: publicKey,
      signingKey: this.#key,
      signingAlgorithm: algorithm,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
        await x509.AuthorityKeyIdentifierExtension.create(this.#intermediate.publicKey),
        ...extensions,
      ],
    });
    return { chain: [`${leaf.toString('pem')}\n`, `${this.#intermediate.toString('pem')}\n`], notAfter };
  }
}

/** 127 random bits, positive, as RFC 5280 section 4.1.2.2 wants it. */
function serialNumber(): string {
  const bytes = randomBytes(16);
  bytes[0] = (bytes[0]! & 0x7f) | 0x40;
  return bytes.toString('hex');
}

async function exportKey(key: CryptoKey): Promise<string> {
  const der = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', key));
  return `${createPrivateKey({ key: der, format: 'der', type: 'pkcs8' }).export({ format: 'pem', type: 'pkcs8' })}`;
}

async function importKey(pem: string, path: string): Promise<CryptoKey> {
  try {
    const der = createPrivateKey(pem).export({ format: 'der', type: 'pkcs8' });
    return await webcrypto.subtle.importKey('pkcs8', der, algorithm, true, ['sign']);
  } catch (error) {
    throw new MizzenError('unusable-key', `the private key cannot be used (${messageOf(error)}): an ECDSA P-256 key in PEM form is needed.`, path);
  }
}

function parseCertificate(pem: string, path: string): x509.X509Certificate {
  try {
    return new x509.X509Certificate(pem);
  } catch (error) {
    throw new MizzenError('unusable-certificate', `the certificate cannot be read (${messageOf(error)}): PEM form is needed.`, path);
  }
}
