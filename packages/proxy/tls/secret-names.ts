/** The names under which a proxy's own identity and the mesh's roots are known to listeners and clusters. */
export const workloadSecretName = 'default';
export const rootSecretName = 'ROOTCA';
