import { readFileSync } from 'node:fs';
import { type Client, createClient } from '@connectrpc/connect';
import { MizzenError, messageOf } from '@mizzen/common';
import { GrpcConnection } from '@mizzen/common/grpc-client';
import { IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import type { CertificateIssuer } from './certificate-issuer.ts';
import { type Identity, spiffeUri } from './spiffe-identity.ts';

export interface IstioCaOptions {
  /** host:port */
  readonly address: string;
  /** Its roots, by which it is known and to which its certificates lead. */
  readonly rootFile: string;
  /** How this control plane proves who it is there: a certificate with its key, or a token. Read anew each time, so that others may renew them. */
  readonly certFile?: string | undefined;
  readonly keyFile?: string | undefined;
  readonly tokenFile?: string | undefined;
}

/** In metadata, as Istio's agents that ask for others say for whom (istio security/pkg/server/ca). */
export const impersonatedIdentityKey = 'ImpersonatedIdentity';

const timeoutMs = 10_000;

/** Passes certificate requests on to another authority that speaks Istio's CreateCertificate: istiod, or the control plane of another mesh of the same trust domain. */
export class IstioCaIssuer implements CertificateIssuer {
  readonly name: string;
  readonly roots: string;
  readonly #options: IstioCaOptions;
  #client: { readonly client: Client<typeof IstioCertificateService>; readonly credentials: string } | undefined;

  constructor(options: IstioCaOptions) {
    this.name = options.address;
    this.roots = read(options.rootFile);
    this.#options = options;
    this.#client = undefined;
  }

  async issue(csr: string, identity: Identity, validitySeconds: number): Promise<readonly string[]> {
    const { tokenFile } = this.#options;
    const headers: Record<string, string> = tokenFile === undefined ? {} : { authorization: `Bearer ${read(tokenFile).trim()}` };
    const request = { csr, validityDuration: BigInt(validitySeconds), metadata: { [impersonatedIdentityKey]: spiffeUri(identity) } };
    return (await this.#connected().createCertificate(request, { headers })).certChain;
  }

  #connected(): Client<typeof IstioCertificateService> {
    const { address, certFile, keyFile } = this.#options;
    const pair = certFile === undefined || keyFile === undefined ? {} : { cert: read(certFile), key: read(keyFile) };
    const credentials = JSON.stringify(pair);
    if (this.#client?.credentials !== credentials) {
      const connection = new GrpcConnection({
        ...{ address, tls: { ca: this.roots, ...pair }, serverName: undefined, callTimeoutMs: timeoutMs, idleTimeoutMs: 30_000 },
      });
      this.#client = { client: createClient(IstioCertificateService, connection.transport), credentials };
    }
    return this.#client.client;
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new MizzenError('unreadable-file', messageOf(error), path);
  }
}
