"use strict";

// The page's only script of its own, in a file: the page works under a policy without inline code.
SwaggerUIBundle({
  url: document.getElementById("docs").dataset.schema,
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null, // nothing is asked of other hosts
});
