import { createPrivateKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { readPrivateFile, writePrivateFile } from './private-file.ts';

/** The private key in a file (PEM, ECDSA P-256), by which tokens are signed. Made where there is none. */
export function signingKeyIn(path: string): KeyObject {
  let pem = readPrivateFile(path);
  if (!pem) {
    pem = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'pem', type: 'pkcs8' }) as string;
    writePrivateFile(path, pem);
  }
  return createPrivateKey(pem);
}
