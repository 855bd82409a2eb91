/**
 * How far the tables of each part have come: as many steps as the part gives to `migrate`. One table, so that a database is judged as a whole
 * when it is opened: whether a newer agent wrote it, and whether a copy has to be kept before any of it is changed.
 *
 * A part that this agent does not know is left alone: a newer agent may add some. So what older agents must not be blind to belongs into a
 * new version of a part that they know.
 */
export const SCHEMA_VERSIONS: Readonly<Record<string, number>> = {
  'address-range': 1,
  'artifact-pins': 1,
  artifacts: 1,
  catalog: 1,
  content: 3,
  'content-lies': 1,
  'content-notes': 1,
  'content-progress': 1,
  images: 1,
  invitations: 1,
  issuing: 1,
  'name-addresses': 1,
  networks: 1,
  nix: 2,
  'nix-held': 1,
  'nix-side-files': 1,
  oci: 1,
  'oci-answers': 1,
  'oci-parts': 1,
  'oci-uploads': 1,
  peers: 1,
  'piece-lists': 1,
  services: 1,
  'store-shares': 1,
  trust: 1,
}
