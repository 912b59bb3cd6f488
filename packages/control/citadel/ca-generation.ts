import 'reflect-metadata';
import { createPrivateKey, type KeyObject, randomBytes, webcrypto, X509Certificate } from 'node:crypto';
import { join } from 'node:path';
import { authorityProblem, intermediateProblem, MizzenError, messageOf, pemCertificates } from '@mizzen/common';
import { backdateMs } from '@mizzen/common/certificate-time';
import * as x509 from '@peculiar/x509';
import { readPrivateFile, writePrivateFile } from './private-file.ts';

type CryptoKey = webcrypto.CryptoKey;

x509.cryptoProvider.set(webcrypto);

/** A key that signs certificates, with how it does. */
export interface SigningKey {
  readonly key: CryptoKey;
  /** The same, as node:crypto has it. */
  readonly node: KeyObject;
  /** Of its signatures, as node:crypto calls it. */
  readonly hash: string;
  readonly algorithm: x509.X509CertificateCreateParamsBase['signingAlgorithm'];
}

/** A root with the intermediate that signs for it. Keys are in files of mode 0600. */
export interface Generation {
  readonly name: string;
  readonly root: x509.X509Certificate;
  readonly intermediate: x509.X509Certificate;
  /** PEM: the intermediate, and others between it and the root. */
  readonly chain: readonly string[];
  readonly signing: SigningKey;
}

const ownAlgorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const dayMs = 86_400_000;

/** Istio's `cacerts` layout: an operator's own authority is used by putting its files there. */
const filesIn = (directory: string) => ({
  rootCert: join(directory, 'root-cert.pem'),
  rootKey: join(directory, 'root-key.pem'),
  cert: join(directory, 'ca-cert.pem'),
  key: join(directory, 'ca-key.pem'),
  chain: join(directory, 'cert-chain.pem'),
});

/** Opens the generation in a folder, making what is missing: a root of its own, or an intermediate of a root whose key is there. */
export async function openGeneration(directory: string, name: string, trustDomain: string, now: number): Promise<Generation> {
  const files = filesIn(directory);
  let rootPem = readPrivateFile(files.rootCert);
  let certPem = readPrivateFile(files.cert);
  let keyPem = readPrivateFile(files.key);
  if (!rootPem) {
    if (certPem)
      throw new MizzenError(
        'incomplete-ca',
        'ca-cert.pem is there but root-cert.pem is not. Put the root certificate beside it, or remove all files to have a new authority made.',
        directory,
      );
    rootPem = await makeRoot(files, trustDomain, now);
  }
  if (!certPem || !keyPem) [certPem, keyPem] = await makeIntermediate(directory, rootPem, trustDomain, now);
  const root = parseCertificate(rootPem, files.rootCert);
  const intermediate = parseCertificate(certPem, files.cert);
  const between = pemCertificates(readPrivateFile(files.chain) ?? '').map((pem) => parseCertificate(pem, files.chain));
  const signing = await importSigningKey(keyPem, files.key);
  const path = pathTo(root, intermediate, between);
  for (const [certificate, file] of [[root, files.rootCert] as const, ...path.map((one) => [one, files.cert] as const)])
    if (certificate.notAfter.getTime() < now)
      throw new MizzenError(
        'expired-certificate',
        `the certificate expired on ${certificate.notAfter.toISOString()}. Replace it; removing ca-cert.pem and ca-key.pem makes a new intermediate.`,
        file,
      );
  // What peers would refuse must not be signed with.
  for (const [certificate, file, problemOf] of [
    [root, files.rootCert, authorityProblem] as const,
    ...path.map((one) => [one, files.cert, intermediateProblem] as const),
  ]) {
    const problem = problemOf(new X509Certificate(Buffer.from(certificate.rawData)));
    if (problem !== undefined) throw new MizzenError('weak-authority', `the certificate ${problem}. Replace it with one that peers accept.`, file);
  }
  for (const [i, certificate] of path.entries())
    if (!(await certificate.verify({ publicKey: (path[i + 1] ?? root).publicKey, signatureOnly: true })))
      throw new MizzenError(
        'broken-chain',
        `ca-cert.pem is not signed by the root in root-cert.pem${between.length > 0 ? ', nor by way of cert-chain.pem' : ''}.`,
        files.cert,
      );
  return { name, root, intermediate, chain: path.map((one) => `${one.toString('pem')}\n`), signing };
}

/** The certificates from the intermediate to below the root, by who has issued whom. */
function pathTo(root: x509.X509Certificate, intermediate: x509.X509Certificate, between: readonly x509.X509Certificate[]): x509.X509Certificate[] {
  const path = [intermediate];
  for (let at = intermediate; at.issuer !== root.subject && path.length <= between.length; ) {
    const next = between.find((candidate) => candidate.subject === at.issuer && !path.includes(candidate));
    if (next === undefined) break;
    path.push((at = next));
  }
  return path;
}

async function makeRoot(files: ReturnType<typeof filesIn>, trustDomain: string, now: number): Promise<string> {
  const keys = await webcrypto.subtle.generateKey(ownAlgorithm, true, ['sign', 'verify']);
  const root = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    name: [{ O: [trustDomain] }, { CN: ['Mizzen root'] }],
    notBefore: new Date(now - backdateMs),
    notAfter: new Date(now + 3650 * dayMs),
    keys,
    signingAlgorithm: ownAlgorithm,
    extensions: [
      new x509.BasicConstraintsExtension(true, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  const pem = `${root.toString('pem')}\n`;
  writePrivateFile(files.rootKey, await exportKey(keys.privateKey));
  writePrivateFile(files.rootCert, pem);
  return pem;
}

async function makeIntermediate(directory: string, rootPem: string, trustDomain: string, now: number): Promise<[cert: string, key: string]> {
  const files = filesIn(directory);
  const rootKeyPem = readPrivateFile(files.rootKey);
  if (!rootKeyPem)
    throw new MizzenError(
      'incomplete-ca',
      'there is no ca-cert.pem with its ca-key.pem, and no root-key.pem to sign a new one with. Add one of the two.',
      directory,
    );
  const keys = await webcrypto.subtle.generateKey(ownAlgorithm, true, ['sign', 'verify']);
  const root = parseCertificate(rootPem, files.rootCert);
  const { key, algorithm } = await importSigningKey(rootKeyPem, files.rootKey);
  const intermediate = await x509.X509CertificateGenerator.create({
    serialNumber: serialNumber(),
    subject: [{ O: [trustDomain] }, { CN: ['Mizzen intermediate'] }],
    issuer: root.subjectName.toJSON(),
    notBefore: new Date(now - backdateMs),
    notAfter: new Date(Math.min(now + 1825 * dayMs, root.notAfter.getTime())),
    publicKey: keys.publicKey,
    signingKey: key,
    signingAlgorithm: algorithm!,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      await x509.AuthorityKeyIdentifierExtension.create(root.publicKey),
    ],
  });
  const pem = `${intermediate.toString('pem')}\n`;
  const keyPem = await exportKey(keys.privateKey);
  writePrivateFile(files.key, keyPem);
  writePrivateFile(files.cert, pem);
  return [pem, keyPem];
}

/** 127 random bits, positive, as RFC 5280 section 4.1.2.2 wants it. */
export function serialNumber(): string {
  const bytes = randomBytes(16);
  bytes[0] = (bytes[0]! & 0x7f) | 0x40;
  return bytes.toString('hex');
}

export async function exportKey(key: CryptoKey): Promise<string> {
  const der = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', key));
  return `${createPrivateKey({ key: der, format: 'der', type: 'pkcs8' }).export({ format: 'pem', type: 'pkcs8' })}`;
}

/** Our own keys are ECDSA P-256; those of operators may be P-384 or RSA (2048 bits and more), too. */
async function importSigningKey(pem: string, path: string): Promise<SigningKey> {
  try {
    const key = createPrivateKey(pem);
    const algorithm = algorithmOf(key);
    const der = key.export({ format: 'der', type: 'pkcs8' });
    return {
      key: await webcrypto.subtle.importKey('pkcs8', der, algorithm, true, ['sign']),
      node: key,
      hash: algorithm.hash.replace('-', '').toLowerCase(),
      algorithm,
    };
  } catch (error) {
    throw new MizzenError(
      'unusable-key',
      `the private key cannot be used (${messageOf(error)}): ECDSA P-256 or P-384, or RSA of at least 2048 bits, in PEM form.`,
      path,
    );
  }
}

function algorithmOf({ asymmetricKeyType: type, asymmetricKeyDetails: details }: KeyObject): { name: string; hash: string; namedCurve?: string } {
  if (type === 'ec' && details?.namedCurve === 'prime256v1') return ownAlgorithm;
  if (type === 'ec' && details?.namedCurve === 'secp384r1') return { name: 'ECDSA', namedCurve: 'P-384', hash: 'SHA-384' };
  if (type === 'rsa' && (details?.modulusLength ?? 0) >= 2048) return { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' };
  throw new Error(`it is of type ${type}${details?.namedCurve ? ` ${details.namedCurve}` : ''}`);
}

export function parseCertificate(pem: string, path: string): x509.X509Certificate {
  try {
    return new x509.X509Certificate(pem);
  } catch (error) {
    throw new MizzenError('unusable-certificate', `the certificate cannot be read (${messageOf(error)}): PEM form is needed.`, path);
  }
}
