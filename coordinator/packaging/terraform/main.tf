# Several coordinators in Kubernetes, by the chart beside this: for Terraform 1.6 or OpenTofu 1.6, and later.
#
# Secrets are no business of a state file: `keys_secret` and `environment_secret` are made before, as the chart's values.yaml says.
# PostgreSQL and the bucket are those of your cloud's modules; their addresses come in as variables.

terraform {
  required_version = ">= 1.6"
  required_providers {
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.0"
    }
  }
}

locals {
  # The names are those of the chart's values.yaml.
  values = {
    replicas = var.replicas
    image = {
      repository = var.image_repository
      tag        = var.image_tag
    }
    secrets = {
      keys        = var.keys_secret
      environment = var.environment_secret
    }
    database = {
      url = var.database_url
    }
    bucket = {
      endpoint = var.bucket.endpoint
      name     = var.bucket.name
      prefix   = var.bucket.prefix
      region   = var.bucket.region
    }
    nodes = {
      url   = var.node_url
      names = var.node_names
    }
    operators = {
      allowFrom = var.operators_allow_from
    }
    config = var.configuration
    monitoring = {
      podMonitor = var.pod_monitor
    }
  }
}

resource "helm_release" "firmesh" {
  name             = var.name
  namespace        = var.namespace
  create_namespace = false
  chart            = var.chart
  atomic           = true
  timeout          = 600
  values           = [yamlencode(local.values)]

  lifecycle {
    precondition {
      condition     = length(var.node_names) > 0
      error_message = "node_names is empty: nodes could not verify the coordinators' certificate."
    }
  }
}

output "node_url" {
  description = "What nodes are told: `coordinator` in node.toml."
  value       = var.node_url
}

output "operators_service" {
  description = "The operators' face within the cluster, plain HTTP: put an Ingress with TLS before it."
  value       = "http://${helm_release.firmesh.name}-operators.${var.namespace}.svc:8640"
}
