variable "name" {
  description = "The release."
  type        = string
  default     = "firmesh"
}

variable "namespace" {
  description = "A namespace that is there, with both secrets in it."
  type        = string
}

variable "chart" {
  description = "The chart: a folder, or where you publish it."
  type        = string
  default     = "../helm/firmesh"
}

variable "replicas" {
  description = "Coordinators. One leads, the others hand on to it and take over."
  type        = number
  default     = 2

  validation {
    condition     = var.replicas >= 1
    error_message = "At least one coordinator is needed."
  }
}

variable "image_repository" {
  description = "Where your build of the coordinator's image is."
  type        = string
}

variable "image_tag" {
  description = "The chart's version, if empty."
  type        = string
  default     = ""
}

variable "keys_secret" {
  description = "The secret with the coordinators' keys."
  type        = string
  default     = "firmesh-keys"
}

variable "environment_secret" {
  description = "The secret with the passwords of the database and the bucket."
  type        = string
  default     = "firmesh-environment"
}

variable "database_url" {
  description = "postgres://role@host/database?sslmode=verify-full, without the password."
  type        = string

  validation {
    condition     = startswith(var.database_url, "postgres://") && !can(regex("^postgres://[^/@]*:", var.database_url))
    error_message = "A postgres:// address without a password: that is FIRMESH_DATABASE_PASSWORD in environment_secret."
  }
}

variable "bucket" {
  description = "Where images lie."
  type = object({
    endpoint = string
    name     = string
    prefix   = optional(string, "")
    region   = string
  })
}

variable "node_url" {
  description = "What nodes are told, https://host:port."
  type        = string

  validation {
    condition     = startswith(var.node_url, "https://")
    error_message = "Nodes speak TLS only."
  }
}

variable "node_names" {
  description = "The names in the coordinators' certificate: the host of node_url, and any other that nodes use."
  type        = list(string)
}

variable "operators_allow_from" {
  description = "Labels of the pods that may come to the operators' face; anybody in the namespace, if empty."
  type        = map(string)
  default     = {}
}

variable "configuration" {
  description = "More of coordinator.toml, such as [access.oidc]."
  type        = string
  default     = ""
}

variable "pod_monitor" {
  description = "Whether the Prometheus operator is there to scrape and to alert."
  type        = bool
  default     = false
}
