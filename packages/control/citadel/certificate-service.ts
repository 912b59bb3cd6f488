import { create } from '@bufbuild/protobuf';
import { Code, ConnectError, type ServiceImpl } from '@connectrpc/connect';
import { type Logger, MizzenError } from '@mizzen/common';
import { IstioCertificateResponseSchema, type IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { authenticate, transportPeerKey } from './caller.ts';
import type { WorkloadSigner } from './certificate-issuer.ts';
import { type ForwardingRules, forwarderOf, identityWanted } from './forwarders.ts';
import type { IssuanceLog } from './issuance-log.ts';
import { IssuanceQuota } from './issuance-quota.ts';
import { impersonatedIdentityKey } from './istio-ca-issuer.ts';
import type { Revocations } from './revocations.ts';
import { spiffeUri } from './spiffe-identity.ts';
import type { WorkloadTokens } from './workload-tokens.ts';

export interface CertificateServiceOptions extends ForwardingRules {
  readonly signer: WorkloadSigner;
  /** Of the authority that signs, for the log; undefined: somebody else does. */
  readonly generation: () => string | undefined;
  readonly tokens: WorkloadTokens;
  readonly log: IssuanceLog;
  /** Told of each certificate of the own authority before the caller has it. */
  readonly revocations: Pick<Revocations, 'issued'>;
  readonly logger: Logger;
}

/** Istio's CreateCertificate: a certificate for the identity that the caller proves, and for no other, unless the caller is trusted to ask for others. */
export function certificateService(options: CertificateServiceOptions): ServiceImpl<typeof IstioCertificateService> {
  const { signer, tokens, trustDomain, log, revocations, logger } = options;
  const quota = new IssuanceQuota();
  return {
    async createCertificate(request, context) {
      const { address, certificate } = context.values.get(transportPeerKey);
      const caller = await authenticate(context, tokens, trustDomain, true);
      const identity = identityWanted(request.metadata?.[impersonatedIdentityKey], caller, options);
      const entry = {
        ...{ identity: spiffeUri(identity), by: certificate === undefined ? ('token' as const) : ('certificate' as const), peer: address },
        ...forwarderOf(caller, identity),
      };
      const exceeded = quota.take(entry.identity);
      if (exceeded !== undefined) throw new ConnectError(exceeded, Code.ResourceExhausted);
      try {
        const { chain, serial, notAfter } = await signer.issue(request.csr, identity, Number(request.validityDuration));
        const until = notAfter.toISOString();
        const generation = options.generation();
        if (generation !== undefined) revocations.issued({ serial, identity: entry.identity, generation, notAfter: until });
        log.write({
          time: new Date().toISOString(),
          outcome: 'issued',
          ...entry,
          serial,
          notAfter: until,
          ...(generation === undefined ? {} : { generation }),
        });
        logger.info('issued a certificate', { identity: entry.identity, until });
        return create(IstioCertificateResponseSchema, { certChain: [...chain, signer.rootCertificate] });
      } catch (error) {
        if (!(error instanceof MizzenError)) throw error;
        log.write({ time: new Date().toISOString(), outcome: 'refused', ...entry, reason: error.message });
        if (error.code === 'issuer-failed') logger.warn(error.message, { identity: entry.identity });
        throw new ConnectError(error.message, error.code === 'issuer-failed' ? Code.Unavailable : Code.InvalidArgument);
      }
    },
  };
}
