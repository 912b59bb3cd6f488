/** Why a handshake failed, in words that say whose fault it was. */
export function explainTlsError(error: Error): string {
  const code = (error as NodeJS.ErrnoException).code ?? '';
  if (/CERT_SIGNATURE_FAILURE|UNABLE_TO_VERIFY|SELF_SIGNED|UNABLE_TO_GET_ISSUER/i.test(code))
    return `the peer's certificate is not signed by a root of this mesh (${code})`;
  if (/CERT_HAS_EXPIRED/i.test(code)) return "the peer's certificate has expired";
  if (/PEER_DID_NOT_RETURN/i.test(code)) return 'the peer sent no certificate';
  return `${error.message.split('\n')[0]!.slice(0, 200)}${code ? ` (${code})` : ''}`;
}
