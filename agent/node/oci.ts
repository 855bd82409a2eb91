/** The OCI front-end of a node, put together: repositories and uploads on this node, and their routes on the loopback server. */
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { callerFault, ownRules } from '../http/caller.ts'
import type { Log } from '../log.ts'
import { LocalRepositories } from '../oci/local-repositories.ts'
import type { RepositoryPath } from '../oci/names.ts'
import type { Places as OciPlaces } from '../oci/repositories.ts'
import { registerOciRoutes } from '../oci/routes.ts'
import { Uploads } from '../oci/uploads.ts'
import type { Database } from '../state/database.ts'
import type { StateDirectory } from '../state/directory.ts'
import type { Content } from './content.ts'
import type { Places } from './places.ts'

type ImagesDeps = { state: StateDirectory; db: Database; content: Pick<Content, 'blobs'>; log: Log }

/** What is kept on this node. Networks that are left take theirs with them, so it is there before they are. */
export type Images = {
  readonly repositories: LocalRepositories
  readonly uploads: Uploads
  /** This node left the network. */
  forget(network: string): void
}

/** Parts that stop are left to the stack. */
export function startImages({ state, db, content, log }: ImagesDeps, stack: AsyncDisposableStack): Images {
  const { blobs } = content
  const repositories = stack.use(new LocalRepositories({ db, blobs }))
  const directory = join(state.file('blobs'), 'uploads')
  const uploads = stack.use(Uploads.open({ directory, db, blobs, repositories, log }))
  const forget = (network: string) => {
    uploads.forgetSpace(network)
    repositories.forgetSpace(network)
  }
  return { repositories, uploads, forget }
}

type RegistryDeps = {
  images: Images
  places: Pick<Places, 'idOf'>
  /** Whether the agent is its group's, not its owner's alone. */
  isShared: boolean
  log: Log
}

/** The routes of the registry, for the loopback server. */
export function registryOf({ images, places, isShared, log }: RegistryDeps): (app: FastifyInstance) => void {
  const rules = ownRules(isShared)
  const { repositories, uploads } = images
  return (app) =>
    registerOciRoutes(app, {
      repositories,
      uploads,
      places: placesOf(places),
      refusal: (socket) => callerFault(socket, rules),
      log,
    })
}

/** The first component of a name is a network, as people here call it. */
function placesOf(places: RegistryDeps['places']): OciPlaces {
  return {
    locate(path) {
      const [network = '', ...rest] = path.split('/')
      if (rest.length === 0) return undefined
      try {
        return { space: places.idOf(network), path: rest.join('/') as RepositoryPath, text: path }
      } catch {
        return undefined
      }
    },
    writeFault: () => undefined,
  }
}
