import { createPublicKey, type KeyObject } from 'node:crypto';
import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { Code, ConnectError, type ServiceImpl } from '@connectrpc/connect';
import { CreateTokenResponseSchema, GetKeysResponseSchema, type SvidService } from '@mizzen/envoy-api/gen/mizzen/citadel/v1/svid_pb.js';
import { calculateJwkThumbprint, SignJWT } from 'jose';
import { authenticate, transportPeerKey } from './caller.ts';
import { type ForwardingRules, forwarderOf, identityWanted } from './forwarders.ts';
import type { IssuanceLog } from './issuance-log.ts';
import { signingKeyIn } from './signing-key.ts';
import { type Identity, spiffeUri } from './spiffe-identity.ts';
import type { TrustBundles } from './trust-bundles.ts';
import type { WorkloadTokens } from './workload-tokens.ts';

const lifetimeSeconds = 300;
const maxAudiences = 20;
/** Characters. Each audience is in the token and in the log. */
const maxAudienceLength = 512;

/** Signs JWT-SVIDs (SPIFFE JWT-SVID): short-lived tokens that say who a workload is, to somebody. */
export class SvidTokens {
  readonly #key: KeyObject;
  readonly #publicKey: KeyObject;
  readonly #now: () => number;

  constructor(directory: string, now: () => number = Date.now) {
    this.#key = signingKeyIn(join(directory, 'jwt-svid-key.pem'));
    this.#publicKey = createPublicKey(this.#key);
    this.#now = now;
  }

  async issue(identity: Identity, audiences: readonly string[]): Promise<string> {
    const issuedAt = Math.floor(this.#now() / 1000);
    return new SignJWT({})
      .setProtectedHeader({ alg: 'ES256', typ: 'JWT', kid: await this.#keyId() })
      .setSubject(spiffeUri(identity))
      .setAudience([...audiences])
      .setIssuedAt(issuedAt)
      .setExpirationTime(issuedAt + lifetimeSeconds)
      .sign(this.#key);
  }

  /** A JWK set. */
  async keys(): Promise<string> {
    return JSON.stringify({ keys: [{ ...this.#publicKey.export({ format: 'jwk' }), kid: await this.#keyId(), alg: 'ES256' }] });
  }

  async #keyId(): Promise<string> {
    return calculateJwkThumbprint(this.#publicKey.export({ format: 'jwk' }) as never);
  }
}

export interface SvidServiceOptions extends ForwardingRules {
  readonly svids: SvidTokens;
  readonly tokens: WorkloadTokens;
  readonly trust: Pick<TrustBundles, 'tokenKeys'>;
  readonly log: IssuanceLog;
}

/** For holders of a certificate of the mesh only: the token that a workload begins with is no proof for others. */
export function svidService({ svids, tokens, trust, trustDomain, forwarders, log }: SvidServiceOptions): ServiceImpl<typeof SvidService> {
  return {
    async createToken({ audiences, identity: wanted }, context) {
      const peer = context.values.get(transportPeerKey);
      if (peer.identity === undefined) throw new ConnectError('a certificate of this mesh is needed', Code.Unauthenticated);
      const caller = await authenticate(context, tokens, trustDomain);
      const identity = identityWanted(wanted, caller, { forwarders, trustDomain });
      if (audiences.length === 0 || audiences.length > maxAudiences || audiences.some((audience) => audience === '' || audience.length > maxAudienceLength))
        throw new ConnectError(`1 to ${maxAudiences} audiences of at most ${maxAudienceLength} characters are needed`, Code.InvalidArgument);
      const token = await svids.issue(identity, audiences);
      log.write({
        time: new Date().toISOString(),
        outcome: 'issued',
        identity: spiffeUri(identity),
        by: 'certificate',
        ...forwarderOf(caller, identity),
        peer: peer.address,
        audiences,
      });
      return create(CreateTokenResponseSchema, { token });
    },
    async getKeys(_request, context) {
      await authenticate(context, tokens, trustDomain);
      return create(GetKeysResponseSchema, { jwks: await svids.keys(), federated: trust.tokenKeys() });
    },
  };
}
