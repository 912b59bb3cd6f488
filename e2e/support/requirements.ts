/** What a test needs of the machine. `npm test` has found out what is missing and has said so; with CI=true nothing may be. */
export function skipWithout(...programs: readonly string[]): string | false {
  const missing = (process.env['MIZZEN_MISSING'] ?? '').split(',').filter((program) => programs.includes(program));
  return missing.length > 0 ? `needs ${missing.join(', ')}` : false;
}
