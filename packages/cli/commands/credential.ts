import { createHash, randomBytes, scryptSync } from 'node:crypto';
import { findKind } from '@mizzen/api';
import { MizzenError } from '@mizzen/common';
import { ApiClient, ApiFailure, collectionPath } from '../api-client.ts';
import { controlAccess, homeOf } from '../home.ts';
import { print } from '../output.ts';

export interface IssueOptions {
  readonly home?: string;
  readonly namespace?: string;
  readonly kind: string;
  readonly name?: string;
  readonly username?: string;
  readonly expires?: string;
}

const consumerKind = findKind('mizzen.dev', 'Consumer')!;
const credentialKind = findKind('mizzen.dev', 'Credential')!;
const secretKind = findKind('', 'Secret')!;
/** RFC 7914: 16 MiB and some 30 ms for each look at a password. */
const scryptCost = { N: 16_384, r: 8, p: 1 };

/** `mizzen credential issue`: what is shown is not stored, and what is stored (hashes) cannot be shown. */
export async function issue(
  consumer: string,
  { home, namespace = 'default', kind, name = `${consumer}-${kind}`, username = consumer, expires }: IssueOptions,
): Promise<void> {
  const api = new ApiClient(controlAccess(homeOf(home)));
  try {
    await api.call('GET', `${collectionPath(consumerKind, namespace)}/${consumer}`).catch((error: unknown) => {
      if (!(error instanceof ApiFailure) || error.status !== 404) throw error;
      throw new MizzenError(
        'unknown-consumer',
        `there is no Consumer ${JSON.stringify(consumer)} in namespace ${namespace}. Apply one first: kind Consumer, mizzen.dev/v1alpha1.`,
      );
    });
    const existing = await api.call('GET', `${collectionPath(credentialKind, namespace)}/${name}`).catch((error: unknown) => {
      if (error instanceof ApiFailure && error.status === 404) return undefined;
      throw error;
    });
    if (existing !== undefined)
      throw new MizzenError(
        'credential-exists',
        `there is a Credential ${JSON.stringify(name)} already. Choose another name with --name, or take that one away: mizzen delete credential ${name}`,
      );
    const secret = randomBytes(24).toString('base64url');
    let spec: object;
    if (kind === 'api-key') spec = { apiKey: { sha256: createHash('sha256').update(secret).digest('hex') } };
    else if (kind === 'basic') {
      const salt = randomBytes(16);
      const hash = scryptSync(secret, salt, 32, scryptCost);
      spec = {
        basic: { username, passwordHash: `scrypt$${scryptCost.N}$${scryptCost.r}$${scryptCost.p}$${salt.toString('base64')}$${hash.toString('base64')}` },
      };
    } else if (kind === 'hmac') {
      // Signatures can only be checked with the key itself: it is kept as a Secret.
      await api.call('POST', collectionPath(secretKind, namespace), {
        body: { apiVersion: 'v1', kind: 'Secret', metadata: { name }, data: { key: Buffer.from(secret).toString('base64') } },
      });
      spec = { hmac: { keyId: name, secret: { name, key: 'key' } } };
    } else throw new MizzenError('invalid-option', `--kind takes api-key, basic or hmac, not ${JSON.stringify(kind)}`);
    await api.call('POST', collectionPath(credentialKind, namespace), {
      body: {
        apiVersion: 'mizzen.dev/v1alpha1',
        kind: 'Credential',
        metadata: { name },
        spec: { consumer, ...spec, ...(expires === undefined ? {} : { expires }) },
      },
    });
    process.stderr.write(
      `${kind === 'basic' ? `user ${username}, password` : kind === 'hmac' ? `key id ${name}, key` : 'key'} of ${consumer}, shown this once:\n`,
    );
    print(secret);
  } finally {
    api.close();
  }
}
