/** The statuses of gRPC in the order of their numbers (grpc statuscodes.md). */
export const grpcStatusNames = [
  ...['OK', 'CANCELLED', 'UNKNOWN', 'INVALID_ARGUMENT', 'DEADLINE_EXCEEDED', 'NOT_FOUND', 'ALREADY_EXISTS', 'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED'],
  ...['FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED', 'INTERNAL', 'UNAVAILABLE', 'DATA_LOSS', 'UNAUTHENTICATED'],
];

/** The number of a status that is given by name or by number, as Istio takes both; undefined when there is none. */
export function grpcStatusOf(text: string): number | undefined {
  if (/^\d{1,2}$/.test(text)) return Number(text) < grpcStatusNames.length ? Number(text) : undefined;
  const number = grpcStatusNames.indexOf(text.toUpperCase());
  return number < 0 ? undefined : number;
}
