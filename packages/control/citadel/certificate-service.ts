import { create } from '@bufbuild/protobuf';
import { Code, ConnectError, type ServiceImpl } from '@connectrpc/connect';
import { type Logger, MizzenError } from '@mizzen/common';
import { IstioCertificateResponseSchema, type IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { authenticate } from './caller.ts';
import type { CertificateAuthority } from './certificate-authority.ts';
import { spiffeUri } from './spiffe-identity.ts';
import type { TokenIssuer } from './token-issuer.ts';

/** Istio's CreateCertificate: a certificate for the identity that the caller proves, and for no other. */
export function certificateService(authority: CertificateAuthority, tokens: TokenIssuer, logger: Logger): ServiceImpl<typeof IstioCertificateService> {
  return {
    async createCertificate(request, context) {
      const identity = await authenticate(context, tokens, authority.trustDomain);
      try {
        const { chain, notAfter } = await authority.issue(request.csr, identity, Number(request.validityDuration));
        logger.info('issued a certificate', { identity: spiffeUri(identity), until: notAfter.toISOString() });
        return create(IstioCertificateResponseSchema, { certChain: [...chain, authority.rootCertificate] });
      } catch (error) {
        if (error instanceof MizzenError) throw new ConnectError(error.message, Code.InvalidArgument);
        throw error;
      }
    },
  };
}
