import type { Kind, Problem } from '@mizzen/api';

/**
 * A refusal in the form that Kubernetes clients understand: HTTP status, `reason`, and the causes that kubectl prints line by line
 * (metav1.Status).
 */
export class ApiError extends Error {
  readonly status: number;
  readonly reason: string;
  readonly details: ApiErrorDetails | undefined;

  constructor(status: number, reason: string, message: string, details?: ApiErrorDetails) {
    super(message);
    this.status = status;
    this.reason = reason;
    this.details = details;
  }

  toStatus(): unknown {
    return {
      kind: 'Status',
      apiVersion: 'v1',
      metadata: {},
      status: 'Failure',
      message: this.message,
      reason: this.reason,
      ...(this.details ? { details: this.details } : {}),
      code: this.status,
    };
  }
}

export interface ApiErrorDetails {
  readonly name?: string;
  readonly group?: string;
  readonly kind?: string;
  readonly causes?: readonly { readonly reason: string; readonly message: string; readonly field: string }[];
}

const resourceName = (kind: Kind) => (kind.group ? `${kind.plural}.${kind.group}` : kind.plural);

export function notFound(kind: Kind, name: string): ApiError {
  return new ApiError(404, 'NotFound', `${resourceName(kind)} "${name}" not found`, { name, group: kind.group, kind: kind.plural });
}

export function alreadyExists(kind: Kind, name: string): ApiError {
  return new ApiError(409, 'AlreadyExists', `${resourceName(kind)} "${name}" already exists`, { name, group: kind.group, kind: kind.plural });
}

export function conflict(kind: Kind, name: string): ApiError {
  return new ApiError(
    409,
    'Conflict',
    `Operation cannot be fulfilled on ${resourceName(kind)} "${name}": the object has been modified; please apply your changes to the latest version and try again`,
    {
      name,
      group: kind.group,
      kind: kind.plural,
    },
  );
}

export function invalidResource(kindName: string, name: string, problems: readonly Problem[]): ApiError {
  const causes = problems.map((problem) => ({ reason: causeReason(problem.code), message: problem.message, field: problem.path || '<root>' }));
  const text = causes.length === 1 ? `${causes[0]!.field}: ${causes[0]!.message}` : `[${causes.map((cause) => `${cause.field}: ${cause.message}`).join(', ')}]`;
  return new ApiError(422, 'Invalid', `${kindName} "${name}" is invalid: ${text}`, { name, kind: kindName, causes });
}

function causeReason(code: string): string {
  return code === 'missing-field' ? 'FieldValueRequired' : code === 'wrong-type' ? 'FieldValueTypeInvalid' : 'FieldValueInvalid';
}

export function badRequest(message: string): ApiError {
  return new ApiError(400, 'BadRequest', message);
}
