import { create } from '@bufbuild/protobuf';
import { Code, ConnectError, type ServiceImpl } from '@connectrpc/connect';
import { type Logger, MizzenError } from '@mizzen/common';
import { IstioCertificateResponseSchema, type IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { authenticate, transportPeerKey } from './caller.ts';
import type { CertificateAuthority } from './certificate-authority.ts';
import type { IssuanceLog } from './issuance-log.ts';
import { spiffeUri } from './spiffe-identity.ts';
import type { WorkloadTokens } from './workload-tokens.ts';

/** Istio's CreateCertificate: a certificate for the identity that the caller proves, and for no other. */
export function certificateService(
  authority: CertificateAuthority,
  tokens: WorkloadTokens,
  log: IssuanceLog,
  logger: Logger,
): ServiceImpl<typeof IstioCertificateService> {
  return {
    async createCertificate(request, context) {
      const { address, certificate } = context.values.get(transportPeerKey);
      const identity = await authenticate(context, tokens, authority.trustDomain, true);
      const entry = { identity: spiffeUri(identity), by: certificate === undefined ? ('token' as const) : ('certificate' as const), peer: address };
      try {
        const { chain, serial, notAfter } = await authority.issue(request.csr, identity, Number(request.validityDuration));
        const until = notAfter.toISOString();
        log.write({ time: new Date().toISOString(), outcome: 'issued', ...entry, serial, notAfter: until, generation: authority.signingGeneration });
        logger.info('issued a certificate', { identity: entry.identity, until });
        return create(IstioCertificateResponseSchema, { certChain: [...chain, authority.rootCertificate] });
      } catch (error) {
        if (error instanceof MizzenError) log.write({ time: new Date().toISOString(), outcome: 'refused', ...entry, reason: error.message });
        if (error instanceof MizzenError) throw new ConnectError(error.message, Code.InvalidArgument);
        throw error;
      }
    },
  };
}
